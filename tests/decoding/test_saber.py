"""Saber's two halves against a plain re-statement of the whole loop, one row at a time."""

import math

import pytest
import torch

from mmdiff.errors import SettingError
from tests.decoding.helpers import CELLS, REQUESTS, answers, batch, fill, make_row, requests

SABER = {"cache": "none"}


def by_hand(model, row, n, width, least):
    """Answer and calls of one row, in blocks of `width`; all lists are by answer cell."""
    canvas = batch(model, row)
    start, forbidden = canvas.prompt_length, model.forbidden()
    kept, last = [None] * CELLS, [0.0] * width + [None] * (CELLS - width)
    calls, end = 0, width
    while bool(canvas.masked.any()):
        logits = model.head(model.hidden(canvas, model.embed(canvas)))[0, start:]
        logits[:, forbidden] = -math.inf
        chance, tokens = logits.double().softmax(1).max(1)
        calls += 1
        held = canvas.masked[0, start:].tolist()
        while not any(held[:end]):
            end += width
        p = chance.tolist()
        opened = sorted((c for c in range(end) if held[c]), key=lambda c: -p[c])
        known = [k for k in kept if k is not None]
        mean = sum(known) / len(known) if known else 1.0
        taken = [c for c in opened if p[c] > mean]
        if len(taken) < n:
            taken = opened[:n]
        for c in taken:
            canvas.ids[0, start + c], canvas.masked[0, start + c] = tokens[c], False
            kept[c], held[c] = p[c], False
        falls = {c: last[c] - p[c] for c in range(end) if not held[c] and last[c] is not None}
        last = [p[c] if c < end else None for c in range(CELLS)]
        if any(held[:end]):
            count = min(max(least, math.ceil(len(taken) / 8)), len(taken) - 1)
            for c in sorted(falls, key=lambda c: -falls[c])[:count]:
                canvas.ids[0, start + c], canvas.masked[0, start + c] = (
                    model.config.mask_token_id,
                    True,
                )
    return canvas.ids[0, start:].tolist(), calls


@torch.inference_mode()
@pytest.mark.parametrize(("n", "width", "least"), [(1, 6, 0), (2, 6, 1), (2, 3, 1), (4, 6, 3)])
def test_saber_equals_the_loop_row_by_row(model, n, width, least):
    model.config.attention_layout = "full"
    settings = {"accept": f"saber:n={n}", "remask": f"drop:least={least}", "block_length": width}
    filled = fill(model, *requests(model), **SABER, **settings)
    expected = [by_hand(model, row, n, width, least) for row in requests(model)]
    assert [(a, int(c)) for a, c in zip(answers(filled), filled.nfe, strict=True)] == expected


@pytest.mark.parametrize(("layout", "reopened"), [("full", True), ("block", False)])
def test_finished_blocks_stay_where_later_ones_are_never_seen(model, layout, reopened):
    """Cells that join the open block have its number afterwards."""
    model.config.attention_layout = layout
    settings = {"accept": "saber:n=3", "remask": "drop:least=2", "block_length": 4}
    rows = [make_row(model.processor, *request, [True] * 12) for request in REQUESTS]
    canvas = fill(model, *rows, **SABER, **settings, max_new_tokens=12).canvas
    numbers = canvas.block[:, canvas.prompt_length :]
    assert (numbers.tolist() != [[1] * 4 + [2] * 4 + [3] * 4] * 3) == reopened


def test_nothing_is_given_back_without_room(model):
    """One cell a step leaves nothing to give back; a share beyond all is one cell."""
    plain = answers(fill(model, *requests(model), steps=6))
    assert answers(fill(model, *requests(model), steps=6, remask="drop:least=3")) == plain


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"accept": "saber:n=0"}, "n=0 must be a whole number, at least 1"),
        ({"accept": "saber:m=1"}, "accept=saber has no option 'm'"),
        ({"remask": "drop:share=1.5"}, "share=1.5 must be a whole number"),
        ({"remask": "drop:lest=1"}, "Did you mean least"),
    ],
)
def test_bad_options_are_refused(model, settings, words):
    with pytest.raises(SettingError, match=words):
        fill(model, requests(model)[0], **settings)
