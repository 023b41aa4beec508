"""Image codes in training: mask ratios, exact numbers of masked cells, weights of visible ones."""

import math

import pytest
import torch

from mmdiff.diffusion.corrupt import exact_cells
from mmdiff.diffusion.losses import visible_weight
from mmdiff.diffusion.schedule import MASK_SCHEDULES, mask_ratio
from mmdiff.errors import SettingError


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("cosine", lambda t: math.cos(math.pi * t / 2)),
        ("linear", lambda t: 1 - t),
        ("pow2", lambda t: 1 - t**2),
        ("pow.5", lambda t: 1 - t**0.5),
        ("sigmoid", lambda t: (sigmoid(3) - sigmoid(6 * t - 3)) / (sigmoid(3) - sigmoid(-3))),
    ],
)
def test_mask_ratio_by_hand(name, formula):
    t = torch.linspace(0, 1, 11)
    got = mask_ratio(t, name)
    for time, value in zip(t.tolist(), got.tolist(), strict=True):
        assert value == pytest.approx(max(formula(time), 0), abs=2e-6)
    assert bool((got.diff() < 0).all()) and float(got[0]) == pytest.approx(1)


@pytest.mark.parametrize("name", ["cos", "pow", "powtwo", "pow-1"])
def test_unknown_mask_schedules(name):
    with pytest.raises(SettingError, match="mask schedule"):
        mask_ratio(torch.zeros(1), name)
    assert all(mask_ratio(torch.zeros(1), known) == 1 for known in MASK_SCHEDULES)


def test_exact_cells_equal_the_loop():
    generator = torch.Generator().manual_seed(0)
    u, p = torch.rand(30, 9, generator=generator), torch.rand(30, 1, generator=generator)
    writable = torch.rand(30, 9, generator=generator) < 0.7
    writable[0] = False
    got = exact_cells(u, p, writable)
    for row in range(30):
        cells = [i for i in range(9) if writable[row, i]]
        count = max(1, round(len(cells) * float(p[row, 0])))
        chosen = sorted(cells, key=lambda i: float(u[row, i]))[:count]
        assert got[row].nonzero()[:, 0].tolist() == sorted(chosen)


def test_visible_cells_weigh_more_where_more_is_masked():
    masked = torch.tensor([[True, False], [False, True], [False, False]])
    weight = visible_weight(torch.tensor([[0.0], [0.5], [1.0]]), masked)
    expected = torch.tensor([[1.0, 0.3], [0.65, 1.0], [1.0, 1.0]])
    torch.testing.assert_close(weight, expected)
