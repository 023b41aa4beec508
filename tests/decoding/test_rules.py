"""What holds for every rule that is registered, whatever it does."""

import pytest
import torch

from mmdiff.decoding.choose import ACCEPTS
from mmdiff.decoding.remask import REMASKS
from tests.decoding.helpers import HOLES, REQUESTS, answers, batch, fill, make_row

NEEDS = {
    "entropy": {"order": "entropy"},
    "entropy_bound": {"order": "entropy"},
    "maskgit": {"schedule": "cosine", "block_length": 6},
}
ACCEPT = [{"accept": name, **NEEDS.get(name, {})} for name in ACCEPTS.names()]
ORIGIN = {"accept": "origin", "block_length": 6}
REMASK = [
    {"remask": name, **(ORIGIN if "remdm" in name else {"accept": "threshold:value=0.2"})}
    for name in REMASKS.names()
]
# Rules that need more cells' logits than are open, with draws of the open ones.
MIXED = [
    {"accept": "origin", "stop": "sched"},
    {"accept": "confident_origin", "remask": "revise"},
    {"accept": "schedule", "order_temperature": 0.5, "remask": "revise"},
]


def rows_of(model):
    return [make_row(model.processor, *r, holes=h) for r, h in zip(REQUESTS, HOLES, strict=True)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "rule", ACCEPT + REMASK + MIXED, ids=lambda rule: str(rule.get("remask") or rule["accept"])
)
def test_every_rule(model, rule, temperature):
    settings = {"steps": 4, "block_length": 4, "temperature": temperature, "trace": True, **rule}
    before = batch(model, *rows_of(model))
    together = fill(model, *rows_of(model), seed=(5, 6, 7), **settings)
    assert not bool(together.canvas.masked.any()), "a cell stayed masked"
    given = ~before.masked
    assert torch.equal(together.canvas.ids[given], before.ids[given])
    assert not bool((together.canvas.ids[~given] == model.config.mask_token_id).any())
    for i, row in enumerate(rows_of(model)):
        alone = fill(model, row, seed=5 + i, **settings)
        made = answers(alone)[0]
        assert made == answers(together)[i][: len(made)]  # shorter rows are padded
        assert int(alone.nfe[0]) == int(together.nfe[i])
        assert int(together.nfe[i]) == sum(int((s.rows == i).sum()) for s in together.trace)
