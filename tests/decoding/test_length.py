"""Answers that grow, against a plain re-statement of the rule on lists, one row at a time."""

from dataclasses import replace

import pytest
import torch

from mmdiff.decoding.length import insert
from mmdiff.decoding.loop import decode
from mmdiff.decoding.settings import make_decoding
from mmdiff.errors import SettingError
from tests.decoding.helpers import REQUESTS, answers, batch, fill, make_row, requests

START, WIDTH, HIGH = 4, 3, 0.6
RULES = (
    {"factor": 3, "end": 0.0001, "keep": 0.0, "low": 0.5, "check": 4, "most": 10},
    {"factor": 3, "end": 0.0001, "keep": 0.6, "low": 0.5, "check": 6, "most": 12},
    {"factor": 4, "end": 0.0, "keep": 1.0, "low": 0.6, "check": 3, "most": 11},
)


def chosen(model, canvas):
    """Probability and id of each answer cell, two lists by row, as the model sees the canvas."""
    logits = model.head(model.hidden(canvas, model.embed(canvas)))[:, canvas.prompt_length :]
    logits[..., model.forbidden()] = float("-inf")
    return [x.tolist() for x in logits.double().softmax(-1).max(-1)]


def some_end(model, canvas):
    """An id that one row chooses at first and another does not."""
    rows = [set(ids) for ids in chosen(model, canvas)[1]]
    return min(rows[0] - rows[1] or rows[1] - rows[0])


def by_hand(model, request, end_id, factor, end, keep, low, check, most):
    """Answer and calls of one row; None is a cell to fill."""
    cells, measuring, calls = [None] * START, True, 0
    mask_id = model.config.mask_token_id
    while None in cells:
        count = len(cells)
        template = [mask_id if c is None else c for c in cells]
        row = make_row(model.processor, *request, [c is None for c in cells], template)
        chance, tokens = (x[0] for x in chosen(model, batch(model, row)))
        calls += 1
        ends = [p for p, t in zip(chance[::-1], tokens[::-1], strict=True) if t == end_id][:check]
        ending = sum(ends) / check
        if measuring:
            measuring = ending < end and count < most
            more = [None] * factor if measuring else [end_id] * (check // 2)
            cells = (cells + more)[:most]
            continue
        first = cells.index(None) // WIDTH * WIDTH
        window = [c for c in range(first, min(first + WIDTH, count)) if cells[c] is None]
        best = max(window, key=lambda c: chance[c])
        taken = {c for c in window if chance[c] >= HIGH} | {best}
        weak = [c for c in window if c not in taken and chance[c] < low]
        for c in taken:
            cells[c] = tokens[c]
        if weak and ending < keep and count < most:
            c = min(weak, key=lambda c: chance[c])
            cells = (cells[:c] + [None] * factor + cells[c + 1 :])[:most]
    return cells, calls


def settings_of(rule, **more):
    text = "grow:" + ",".join(f"{k}={v}" for k, v in rule.items())
    base = {"accept": f"threshold:value={HIGH}", "block_length": WIDTH, "stop": "none"}
    return make_decoding(base | {"max_new_tokens": START, "length": text} | more)


@torch.inference_mode()
@pytest.mark.parametrize("cache", ["none", "prefix"])
def test_growing_equals_the_rule_row_by_row(model, cache):
    """Rows that come to differ in length are padded; with a prefix layout the cache is exact."""
    model.config.attention_layout = "prefix" if cache == "prefix" else "full"
    lengths = set()
    for rule in RULES if cache == "none" else RULES[:1]:
        canvas = batch(model, *(make_row(model.processor, *r, [True] * START) for r in REQUESTS))
        end_id = some_end(model, canvas)
        filled = decode(model, canvas, settings_of(rule, cache=cache), end_id)
        cells = filled.canvas.writable.sum(1).tolist()
        made = [a[:n] for a, n in zip(answers(filled), cells, strict=True)]
        expected = [by_hand(model, request, end_id, **rule) for request in REQUESTS]
        assert list(zip(made, filled.nfe.tolist(), strict=True)) == expected
        padding = ~filled.canvas.writable[:, canvas.prompt_length :]
        assert set(filled.canvas.ids[:, canvas.prompt_length :][padding].tolist()) <= {end_id}
        lengths.add(tuple(cells))
    assert any(len(set(cells)) > 1 for cells in lengths)


def test_insert(model):
    canvas = batch(model, *(make_row(model.processor, *r, [True] * START) for r in REQUESTS))
    first = canvas.prompt_length
    canvas.ids[:, first:] = torch.tensor([1, 2, 3, 4])
    canvas.masked[:, first:] = torch.tensor([False, True, False, False])
    at, count = torch.tensor([1, 4, 0]) + first, torch.tensor([2, 1, 0])
    given, mask_id = torch.tensor([False, True, False]), model.config.mask_token_id
    made = insert(canvas, at, count, torch.tensor([5, 5, 4]), mask_id, given, torch.tensor(9))
    m = mask_id
    assert made.ids[:, first:].tolist() == [[1, m, m, 2, 3], [1, 2, 3, 4, 9], [1, 2, 3, 4, 9]]
    held = made.masked[:, first:].int().tolist()
    assert held == [[0, 1, 1, 1, 0], [0, 1, 0, 0, 0], [0, 1, 0, 0, 0]]
    assert made.valid[:, first:].sum(1).tolist() == [5, 5, 4]
    longer = batch(model, *(make_row(model.processor, *r, [True] * 5) for r in REQUESTS))
    assert torch.equal(made.position, longer.position)
    assert torch.equal(made.ids[:, :first], canvas.ids[:, :first])
    wide = replace(canvas, position=canvas.position.expand(3, -1, -1))
    made = insert(wide, at, count, torch.tensor([5, 5, 4]), mask_id, given, torch.tensor(9))
    assert torch.equal(made.position, longer.position.expand(3, -1, -1))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cache": "dual"}, "use cache=none or prefix"),
        ({"cfg_scale": 1.0}, "neither guidance"),
        ({"accept": "schedule"}, "does not go with accept=schedule"),
        ({"remask": "revise"}, "does not go with remask=revise"),
        ({"stop": "sched"}, "does not go with stop=sched"),
        ({"length": "grow:most=2"}, "most=2 is less than max_new_tokens"),
        ({"length": "grow:factor=0"}, "factor=0 must be a whole number"),
        ({"length": "grwo"}, "Did you mean grow"),
    ],
)
def test_what_does_not_go_together_is_refused(model, settings, words):
    rule = {"length": "grow", "accept": "threshold", "cache": "none"}
    with pytest.raises(SettingError, match=words):
        fill(model, requests(model)[0], **(rule | settings))


def test_a_template_does_not_grow(model):
    row = make_row(model.processor, *REQUESTS[0], holes=[True, False, True])
    with pytest.raises(SettingError, match="nothing but cells to fill"):
        fill(model, row, length="grow", accept="threshold", cache="none")
