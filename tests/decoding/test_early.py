"""Early exits: thresholds, what is watched, and what they fill."""

import math

import pytest
import torch

from mmdiff.decoding.settings import Decoding
from mmdiff.decoding.stop import STOPS
from tests.decoding.helpers import answers, fill, make_row, requests

NAMES = ("prophet", "sched", "sched_cosine", "sched_exponential")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("prophet", lambda p: 7.5 if p < 0.33 else 5.0 if p < 0.67 else 2.5),
        ("sched", lambda p: 7.5 - 5 * p),
        ("sched_cosine", lambda p: 2.5 + 5 * (1 + math.cos(math.pi * p)) / 2),
        ("sched_exponential", lambda p: 2.5 + 5 * math.exp(-4 * p)),
    ],
)
def test_thresholds_fall_with_progress(name, expected):
    rule = STOPS.get(name)({}, Decoding(max_new_tokens=6))
    grid = [i / 20 for i in range(21)]
    made = [rule.threshold(p) for p in grid]
    assert made == pytest.approx([expected(p) for p in grid])
    assert made == sorted(made, reverse=True)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_equals_its_rows_alone(model, name, cache):
    options = "early=0.4,mid=0.2,late=0.1,cells=3" if name == "prophet" else "first=0.4,last=0.1"
    rule = {"stop": f"{name}:{options}", "cache": cache, "block_length": 3}
    together = fill(model, *requests(model), **rule)
    assert not bool(together.canvas.masked.any())
    for i, row in enumerate(requests(model)):
        alone = fill(model, row, **rule)
        assert answers(alone)[0] == answers(together)[i]
        assert int(alone.nfe[0]) == int(together.nfe[i])


@pytest.mark.parametrize("name", NAMES)
def test_a_threshold_never_met_changes_nothing_and_one_of_zero_ends_at_once(model, name):
    high, low = ("early=1e6,mid=1e6,late=1e6", "early=0,mid=0,late=0")
    if name != "prophet":
        high, low = "first=1e6,last=1e6", "first=0,last=0"
    row = make_row(model.processor, "a", "red")
    plain = fill(model, row, stop="none")
    never = fill(model, row, stop=f"{name}:{high}")
    at_once = fill(model, row, stop=f"{name}:{low}")
    assert answers(never)[0] == answers(fill(model, row, stop="end_of_text"))[0]
    assert (int(plain.nfe[0]), int(at_once.nfe[0])) == (6, 1)


@torch.inference_mode()
def test_the_gap_is_the_mean_over_the_watched_cells(model):
    """With one step the exit is decided by the first call's logits."""
    row = make_row(model.processor, "a", "red")
    start = fill(model, row, steps=1, trace=True)  # one call: everything at once
    canvas = start.canvas
    masked = canvas.writable
    canvas.ids[masked] = model.processor.mask_id
    logits = model.score(canvas, masked)
    logits[:, model.forbidden()] = float("-inf")
    two = logits.topk(2, dim=1).values
    gap = float((two[2:5, 0] - two[2:5, 1]).double().mean())
    for factor, calls in ((0.999, 1), (1.001, 6)):
        limit = gap * factor
        rule = f"prophet:start=2,cells=3,early={limit},mid=1e6,late=1e6"
        assert int(fill(model, row, stop=rule).nfe[0]) == calls
