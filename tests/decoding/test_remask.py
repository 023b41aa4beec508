"""Decided cells that are written again, step by step."""

import pytest
import torch

from mmdiff.errors import SettingError
from tests.decoding.helpers import answers, batch, fill, requests

SETTINGS = {"accept": "schedule", "steps": 3, "order": "confidence", "cache": "none"}


def by_hand(model, row, cells, steps, last):
    """One row: n // steps best cells per step; decided cells take the new choice in the `last`
    steps."""
    canvas = batch(model, row)
    start = canvas.prompt_length
    forbidden = model.forbidden()
    for step in range(steps):
        decided = canvas.writable & ~canvas.masked
        logits = model.head(model.hidden(canvas, model.embed(canvas)))[0, start:]
        logits[:, forbidden] = float("-inf")
        chance, tokens = logits.softmax(1).max(1)
        chance[~canvas.masked[0, start:]] = -1
        best = chance.topk(cells // steps).indices + start
        canvas.ids[0, best] = tokens[best - start]
        canvas.masked[0, best] = False
        if step >= steps - last:
            again = decided[0].nonzero()[:, 0]
            canvas.ids[0, again] = tokens[again - start]
    return canvas.ids[0, start:].tolist()


@torch.inference_mode()
@pytest.mark.parametrize(("start", "last"), [(1.0, 3), (0.34, 2), (0.0, 0)])
def test_revise_equals_the_loop_row_by_row(model, start, last):
    rows = requests(model)
    filled = fill(model, *rows, **SETTINGS, remask=f"revise:start={start}")
    assert answers(filled) == [by_hand(model, row, 6, 3, last) for row in requests(model)]


def test_revising_nothing_is_no_revising(model):
    plain = answers(fill(model, *requests(model), **SETTINGS))
    none = answers(fill(model, *requests(model), **SETTINGS, remask="revise:top=0.0"))
    assert plain == none


def test_given_cells_stay(model):
    rows = requests(model)
    rows[0][0].writable[-6:] = [True] * 5 + [False]
    rows[0][0].masked[-1], rows[0][0].ids[-1] = False, 25
    assert answers(fill(model, *rows, **SETTINGS, remask="revise"))[0][-1] == 25


def test_unknown_options_are_refused(model):
    with pytest.raises(SettingError, match=r"no option 'tap'\. Did you mean top"):
        fill(model, *requests(model), remask="revise:tap=0.5")
    with pytest.raises(SettingError, match="Did you mean revise"):
        fill(model, *requests(model), remask="revize")
