"""Speculation changes how often the model is called, and nothing else."""

import pytest
import torch

from mmdiff.errors import SettingError
from tests.decoding.helpers import answers, fill, make_row, requests

RULES = [
    {},
    {"block_length": 4, "order": "margin"},
    {"order": "left_to_right", "steps": 6},
    {"order": "random", "steps": 8},
    {"accept": "threshold:value=0.3", "block_length": 6},
    {"accept": "saber:n=3", "remask": "drop"},
    {"remask": "revise", "steps": 6},
    {"stop": "sched", "steps": 8},
    {"temperature": 1.0, "seed": (1, 2, 3)},
    {"accept": "origin", "remask": "remdm_cap:eta=0.5", "steps": 8},
]


def quiet(model):
    """Answers that depend less on each other, so that guesses come true now and then."""
    holes = [True] * 12
    return [
        make_row(model.processor, q, c, holes)
        for q, c in (("a", "red"), ("is it?", None), ("b", "blue"))
    ]


@pytest.mark.parametrize("cache", ["none", "prefix"])
def test_the_same_answers(model, cache):
    model.config.attention_layout = "prefix" if cache == "prefix" else "full"
    plain_calls = calls = 0
    for rule in RULES if cache == "none" else RULES[:3]:
        settings = {"max_new_tokens": 12, "cache": cache, "trace": True, **rule}
        plain = fill(model, *quiet(model), **settings)
        fast = fill(model, *quiet(model), **settings, speculate="freedave:drafts=4")
        assert answers(fast) == answers(plain), rule
        assert len(fast.trace) == len(plain.trace)
        for one, other in zip(fast.trace, plain.trace, strict=True):
            assert torch.equal(one.ids, other.ids)
        assert bool((fast.nfe <= plain.nfe).all())
        assert fast.calls <= plain.calls
        seed = rule.get("seed", (0, 0, 0))[1]
        again = settings | {"seed": seed, "speculate": "freedave:drafts=4"}
        alone = fill(model, quiet(model)[1], **again)
        assert int(alone.nfe[0]) == int(fast.nfe[1])
        plain_calls, calls = plain_calls + int(plain.nfe.sum()), calls + int(fast.nfe.sum())
    assert calls < plain_calls


def test_one_draft_is_no_speculation(model):
    plain, fast = (
        fill(model, *requests(model), **s) for s in ({}, {"speculate": "freedave:drafts=1"})
    )
    assert fast.nfe.tolist() == plain.nfe.tolist()
    assert answers(fast) == answers(plain)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cache": "dual"}, "use cache=none or prefix"),
        ({"cfg_scale": 1.0}, "no guidance"),
        ({"speculate": "freedave:drafts=0"}, "drafts=0 must be a whole number"),
        ({"speculate": "freedve"}, "Did you mean freedave"),
    ],
)
def test_what_does_not_go_together_is_refused(model, settings, words):
    with pytest.raises(SettingError, match=words):
        fill(model, requests(model)[0], **{"speculate": "freedave", "cache": "none"} | settings)
