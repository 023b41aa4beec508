"""Drafts in one canvas of a causal model: fewer calls, and nothing else."""

import pytest
import torch

from mmdiff.errors import SettingError
from tests.decoding.helpers import REQUESTS, answers, fill, make_row

HOLES = ([True] * 12, [True, True, False] * 4, [False] * 3 + [True] * 9)
RULES = [
    {},
    {"block_length": 4, "stop": "block"},
    {"temperature": 0.5, "top_p": 0.9, "seed": (1, 2, 3)},
    {"speculate": "assd:drafts=1"},
    {"cache": "prefix", "stop": "end_of_text", "stop_ids": tuple(range(20, 120))},
]


def rows_of(model):
    return [make_row(model.processor, *r, holes=h) for r, h in zip(REQUESTS, HOLES, strict=True)]


def causal(model, layout="causal", shift=True):
    model.config.attention_layout, model.config.shift = layout, shift
    model.config.picture_apart = False


@pytest.mark.parametrize("layout", ["causal", "causal_block"])
def test_the_same_answers_in_fewer_calls(model, layout):
    causal(model, layout)
    plain_calls = calls = 0
    for rule in RULES:
        ways = {"order": "left_to_right", "max_new_tokens": 12, "cache": "none", **rule}
        plain = fill(model, *rows_of(model), **ways | {"speculate": "none"})
        fast = fill(model, *rows_of(model), **{"speculate": "assd", **ways})
        assert answers(fast) == answers(plain), rule
        assert bool((fast.nfe <= plain.nfe).all())
        assert fast.calls <= plain.calls
        for i, row in enumerate(rows_of(model)):
            seed = {"seed": rule["seed"][i]} if "seed" in rule else {}
            alone = fill(model, row, **{"speculate": "assd", **ways, **seed})
            assert (answers(alone)[0], int(alone.nfe[0])) == (answers(fast)[i], int(fast.nfe[i]))
        plain_calls, calls = plain_calls + int(plain.nfe.sum()), calls + int(fast.nfe.sum())
    assert calls < plain_calls


def test_a_model_that_hears_nothing_is_asked_as_often_as_its_drafts_last(model, monkeypatch):
    """Every draft comes true where no cell depends on another: one call, then one for each
    `drafts` cells and the one behind them."""
    causal(model)
    hidden = type(model).hidden

    def deaf(self, canvas, embeds, *args, **kwargs):
        return hidden(self, canvas, torch.zeros_like(embeds), *args, **kwargs)

    monkeypatch.setattr(type(model), "hidden", deaf)
    row = make_row(model.processor, "a", None, [True] * 12)
    for drafts, calls in ((1, 7), (2, 5), (4, 4), (20, 2)):
        ways = {"order": "left_to_right", "max_new_tokens": 12, "cache": "none"}
        made = fill(model, row, **ways, speculate=f"assd:drafts={drafts}")
        assert made.nfe.tolist() == [calls], drafts


@pytest.mark.parametrize(
    ("layout", "shift", "settings", "words"),
    [
        ("full", True, {}, "attention is full, shifted; use speculate=freedave"),
        ("prefix", True, {}, "attention is prefix"),
        ("causal", False, {}, "attention is causal; use"),
        ("causal", True, {"order": "confidence"}, "order must be left_to_right"),
        ("causal", True, {"steps": 3}, "steps must be None"),
        ("causal", True, {"accept": "threshold"}, "accept must be schedule"),
        ("causal", True, {"late": (5,)}, "late must be"),
        ("causal", True, {"remask": "revise"}, "remask must be none"),
        ("causal", True, {"stop": "sched"}, "stop=sched looks at others"),
        ("causal", True, {"cfg_scale": 1.0}, "no guidance"),
        ("causal", True, {"cache": "dual"}, "use cache=none or prefix"),
        ("causal", True, {"speculate": "assd:drafts=0"}, "drafts=0 must be"),
    ],
)
def test_what_does_not_go_together_is_refused(model, layout, shift, settings, words):
    causal(model, layout, shift)
    ways = {"speculate": "assd", "order": "left_to_right", "cache": "none"} | settings
    with pytest.raises(SettingError, match=words):
        fill(model, rows_of(model)[0], **ways)
