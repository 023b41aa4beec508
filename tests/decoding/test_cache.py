"""Keeping the prompt's keys and values changes nothing where that is exact."""

import pytest
import torch

from tests.decoding.helpers import RULES, answers, fill, requests


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(
    ("layout", "apart"), [("prefix", True), ("prefix", False), ("block", True)]
)
def test_the_prefix_cache_is_exact(model, layout, apart, shift):
    model.config.attention_layout, model.config.shift = layout, shift
    model.config.picture_apart = apart
    for rule in RULES:
        runs = [fill(model, *requests(model), cache=c, trace=True, **rule)
                for c in ("none", "prefix")]  # fmt: skip
        assert answers(runs[0]) == answers(runs[1]), rule
        for one, other in zip(runs[0].trace, runs[1].trace, strict=True):
            torch.testing.assert_close(one.probability, other.probability)


@pytest.mark.parametrize("shift", [False, True])
def test_the_prefix_cache_of_a_full_model_hides_the_answer_from_the_prompt(model, shift):
    settings = {"cache": "prefix", "temperature": 1.0, "steps": 3}
    model.config.attention_layout, model.config.shift = "full", shift
    model.config.picture_apart = False
    cached = answers(fill(model, *requests(model), **settings))
    plain = answers(fill(model, *requests(model), **{**settings, "cache": "none"}))
    model.config.attention_layout = "prefix"
    hidden = answers(fill(model, *requests(model), **settings))
    assert cached != plain
    # The shifted form feeds the last prompt cell again, which then does see the answer.
    if not shift:
        assert cached == hidden


def test_the_cache_is_chosen_by_the_layout(model):
    model.config.attention_layout, model.config.picture_apart = "full", False
    auto, plain = (fill(model, *requests(model), cache=c) for c in ("auto", "none"))
    assert answers(auto) == answers(plain)
    assert answers(auto) != answers(fill(model, *requests(model), cache="prefix"))
