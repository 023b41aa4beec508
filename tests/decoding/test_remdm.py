"""ReMDM's chances against its formula in float64, and the mask rates these must lead to."""

import math
from types import SimpleNamespace

import pytest
import torch

from mmdiff.decoding.remask import REMASKS
from mmdiff.decoding.settings import Decoding
from mmdiff.errors import SettingError
from tests.decoding.helpers import fill, make_row, requests
from tests.decoding.test_choose import canvas

MODEL = SimpleNamespace(config=SimpleNamespace(mask_token_id=99))
NAMES = ("remdm_cap", "remdm_rescale", "remdm_conf")
STEPS, EPS = 5, 0.1


def made(name, live, seed=0, **options):
    settings = Decoding(accept="origin", steps=STEPS, eps=EPS, max_new_tokens=4, seed=seed)
    return REMASKS.get(name)(settings, options, MODEL, live)


def formula(name, step, eta, kept):
    """Chances to be masked again and to be decided of decided cells with p `kept` and of a masked
    cell, by the paper."""
    grid = [1 - i * (1 - EPS) / STEPS for i in range(STEPS)] + [0.0]
    alpha_t, alpha_s = 1 - grid[step], 1 - grid[step + 1]
    most = min(1.0, (1 - alpha_s) / alpha_t) if alpha_t else 1.0
    if name == "remdm_conf":
        total = math.fsum(math.exp(-p) for p in kept)
        sigma, masked = [math.exp(-p) / total * most for p in kept], 0.0
    else:
        masked = min(eta, most) if name == "remdm_cap" else eta * most
        sigma = [masked] * len(kept)
    return sigma, (alpha_s - (1 - masked) * alpha_t) / (1 - alpha_t)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("step", range(STEPS))
def test_chances_equal_the_formula(name, step):
    live = canvas("xxxx")
    rule = made(name, live, **({} if name == "remdm_conf" else {"eta": 0.3}))
    rule.clock += step
    answer = live.writable[0].nonzero()[:, 0]
    masked = torch.zeros_like(live.masked)
    masked[0, answer[-1]] = True
    decided = live.writable & ~masked
    kept = [0.1 + 0.3 * i for i in range(int(decided.sum()))]
    rule.kept[decided] = torch.tensor(kept)
    again, decide = rule.chances(torch.arange(1), decided)
    sigma, chance = formula(name, step, 0.3, kept)
    assert again[decided].tolist() == pytest.approx(sigma, rel=1e-6)
    assert float(decide[masked]) == pytest.approx(chance, rel=1e-9)


@pytest.mark.parametrize("name", ["remdm_cap", "remdm_rescale"])
def test_as_many_cells_are_masked_as_without(name):
    """After each step a cell is masked with chance s, whatever sigma (Theorem 3.1)."""
    rows = 4000
    live = canvas("x").select(torch.zeros(rows).long())
    rule = made(name, live, seed=tuple(range(rows)), eta=0.4)
    every = torch.arange(rows)
    again = 0
    for step in range(STEPS):
        before, score = live.masked, torch.where(live.masked, 0.0, -math.inf)
        rule.wants(live, every)
        live.write(torch.zeros_like(live.ids), rule.accept(score, score, live, every, None))
        rule.revise(live, before, live.ids, score)
        behind = rule.clock > step + 1  # rows without a mask pass steps until they have one
        rule.clock.clamp_(max=step + 1)
        live.masked = live.masked & ~behind[:, None]
        again += int((live.masked & ~before).sum())
        s = 1 - (step + 1) * (1 - EPS) / STEPS if step < STEPS - 1 else 0.0
        rate = float(live.masked.double().sum(1).mean())
        assert abs(rate - s) <= 4 * math.sqrt(s * (1 - s) / rows)
    assert again > rows // 10


@pytest.mark.parametrize("name", NAMES)
def test_remdm_fills_and_masks_again(model, name):
    rule = name if name == "remdm_conf" else f"{name}:eta=1"
    rows = [make_row(model.processor, "a", "red", [True] * 12)]
    settings = {"max_new_tokens": 12, "accept": "origin", "steps": 24, "temperature": 1.0}
    filled = fill(model, *rows, **settings, remask=rule, trace=True)
    accepted = sum(int(step.accepted.sum()) for step in filled.trace)
    assert accepted > 12
    assert not bool(filled.canvas.masked.any())
    assert int(filled.nfe[0]) <= 24


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"remask": "remdm_cap"}, "use accept=origin and one block"),
        ({"remask": "remdm_cap:eta=2", "accept": "origin"}, r"eta=2 must lie in \[0, 1\]"),
        ({"remask": "remdm_conf:eta=1", "accept": "origin"}, "no option 'eta'"),
    ],
)
def test_what_does_not_fit_is_refused(model, settings, words):
    with pytest.raises(SettingError, match=words):
        fill(model, requests(model)[0], **settings)
