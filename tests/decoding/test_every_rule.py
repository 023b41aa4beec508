"""What every registered rule keeps to, walked from the registries."""

import pytest
import torch

from mmdiff.decoding.choose import SCHEDULES
from mmdiff.decoding.rules import RULES, named
from tests.decoding.helpers import REQUESTS, answers, batch, fill, make_row

HOLES = ([True] * 6, [True, False] * 3, [False] * 4 + [True] * 2)
# Rules of a block need the steps of several; few enough that a schedule takes more than one cell.
SETTINGS = {"steps": 4, "block_length": 3}
WHOLE = ("maskgit", "remdm_cap", "remdm_conf", "remdm_rescale")  # have one block
TOGETHER = ("batch_block_end",)  # by definition rows of a batch wait for each other
FEWER = ("freedave",)  # steps that need no call
# Takes no given cells and changes lengths: test_length.py; needs a network: test_policy.py.
ELSEWHERE = ("grow", "policy")
EVERY = [
    (setting, name)
    for setting, rules in RULES.items()
    for name in rules.names()
    if name not in ELSEWHERE
]


def rows_of(model):
    return [make_row(model.processor, *r, holes=h) for r, h in zip(REQUESTS, HOLES, strict=True)]


def decoded(model, *rows, rule, **settings):
    """Rows filled, with the number of times each was fed to the backbone."""
    filled = fill(model, *rows, **{**SETTINGS, **rule, "trace": True, **settings})
    fed = [sum(int((step.rows == i).sum()) for step in filled.trace) for i in range(len(rows))]
    return filled, fed


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("setting", "name"), EVERY, ids=[f"{s}={n}" for s, n in EVERY])
def test_every_rule(model, setting, name, temperature):
    model.config.attention_layout = "block" if name == "block" else "prefix"
    rule = named(setting, name) | {"temperature": temperature}
    if name in WHOLE:
        rule["block_length"] = None
    before = batch(model, *rows_of(model))
    made, fed = decoded(model, *rows_of(model), rule=rule, seed=(5, 6, 7))

    assert not made.canvas.masked.any()
    given = ~before.masked
    assert torch.equal(made.canvas.ids[given], before.ids[given])
    if setting != "stop":  # some of which leave what lies behind an end as it is
        assert not (made.canvas.ids[~given] == model.config.mask_token_id).any()
    if name in FEWER:
        assert 0 < int(made.nfe.sum()) <= sum(fed)
    else:
        assert made.nfe.tolist() == fed
    assert 0 < made.inside <= made.seconds

    again, _ = decoded(model, *rows_of(model), rule=rule, seed=(5, 6, 7))
    assert answers(again) == answers(made)
    if name not in TOGETHER:
        for i, row in enumerate(rows_of(model)):
            alone, calls = decoded(model, row, rule=rule, seed=5 + i)
            assert (answers(alone)[0], calls) == (answers(made)[i], [fed[i]])


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_takes_the_steps_it_was_given(model, name):
    row = make_row(model.processor, *REQUESTS[0], holes=[True] * 12)
    filled = fill(model, row, schedule=name, steps=4, max_new_tokens=12)
    assert not filled.canvas.masked.any()
    assert int(filled.nfe[0]) <= 4
