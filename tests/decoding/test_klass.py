"""Cells at rest, and the entropy threshold, against loops."""

import math

import pytest
import torch

from mmdiff.decoding.choose import ACCEPTS
from mmdiff.decoding.klass import divergence
from mmdiff.decoding.settings import Decoding
from mmdiff.errors import SettingError
from tests.decoding.helpers import answers, batch, fill, requests
from tests.decoding.test_choose import canvas

N = 6


def test_divergence():
    logits = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    logits[..., 3] = -math.inf
    now, before = logits.double().log_softmax(-1)
    expected = []
    for p, q in zip(now.tolist(), before.tolist(), strict=True):
        pairs = [(a, b) for a, b in zip(p, q, strict=True) if a > -math.inf]
        expected.append(math.fsum(math.exp(a) * (a - b) for a, b in pairs))
    assert divergence(now, before).tolist() == pytest.approx(expected)
    assert divergence(now, now).tolist() == [0.0] * 5


def by_hand(model, row, above, kl, history):
    """One row, one cell a step where none is at rest."""
    view = batch(model, row)
    start, forbidden = view.prompt_length, model.forbidden()
    before, calm, calls = None, [0] * N, 0
    while bool(view.masked.any()):
        logits = model.head(model.hidden(view, model.embed(view)))[0, start:].double()
        logits[:, forbidden] = -math.inf
        now, held = logits.log_softmax(1), view.masked[0, start:].tolist()
        calls += 1
        for c in range(N):
            moved = math.inf
            if before is not None:
                p, q = now[c].tolist(), before[c].tolist()
                moved = sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True) if a > -1e9)
            calm[c] = calm[c] + 1 if moved < kl else 0
        chance, tokens = now.exp().max(1)
        opened = [c for c in range(N) if held[c]]
        taken = [c for c in opened if chance[c] > above and calm[c] >= history]
        for c in taken or [max(opened, key=lambda c: float(chance[c]))]:
            view.ids[0, start + c], view.masked[0, start + c] = tokens[c], False
        before = now
    return view.ids[0, start:].tolist(), calls


@torch.inference_mode()
@pytest.mark.parametrize(("above", "kl", "history"), [(0.2, 3.0, 1), (0.0, 5.0, 2), (0.9, 0.0, 1)])
def test_klass_equals_the_loop_row_by_row(model, above, kl, history):
    rule = f"klass:above={above},kl={kl},history={history}"
    filled = fill(model, *requests(model), accept=rule, cache="none")
    expected = [by_hand(model, row, above, kl, history) for row in requests(model)]
    assert [(a, int(c)) for a, c in zip(answers(filled), filled.nfe, strict=True)] == expected


def test_entropy_threshold():
    rule = ACCEPTS.get("entropy")(Decoding(order="entropy"), canvas("xxxx"), most=0.5)
    inf = math.inf
    score = torch.tensor([[-0.5, -inf, -0.51, -0.1], [-3.0, -2.0, -inf, -2.0], [-inf] * 4])
    got = rule(score, score, None, torch.arange(3), None)
    assert got.int().tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_only_sure_choices_edit(model):
    settings = {"steps": 3, "cache": "none"}
    plain, every = (
        answers(fill(model, *requests(model), **settings, remask=r)) for r in ("none", "revise")
    )
    assert answers(fill(model, *requests(model), **settings, remask="revise:above=1")) == plain
    assert answers(fill(model, *requests(model), **settings, remask="revise:above=0")) == every


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"accept": "entropy"}, "goes with order=entropy"),
        ({"accept": "klass:history=0"}, "history=0 must be a whole number"),
        ({"accept": "klass:above=2"}, "above must lie in"),
        ({"accept": "klass:kl=soon"}, "kl='soon' is not a number"),
    ],
)
def test_bad_options_are_refused(model, settings, words):
    with pytest.raises(SettingError, match=words):
        fill(model, requests(model)[0], **settings)
