"""Schedules against numerical derivatives, quadrature and a brute-force restatement."""

import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mmdiff.diffusion.schedule import (
    REVEAL_SCHEDULES,
    mask_probability,
    mask_slope,
    reveal_counts,
    sample_times,
    stratified_times,
    uniform,
)
from mmdiff.errors import SettingError

NOISE = ("linear", "cosine")
MDLM = ("mdlm_linear", "mdlm_cosine", "mdlm_log")


def grid(points=2001):
    return torch.linspace(0, 1, points, dtype=torch.float64)


@pytest.mark.parametrize("name", NOISE)
@pytest.mark.parametrize("eps", [1e-3, 0.05, 0.0])
def test_probability_runs_from_eps_to_one(name, eps):
    p = mask_probability(grid(), name, eps)
    assert float(p[0]) == pytest.approx(eps, abs=1e-15)
    assert float(p[-1]) == pytest.approx(1, abs=1e-15)
    assert bool((p.diff() > 0).all())
    assert float(mask_probability(grid().float(), name, eps).max()) <= 1


def test_probability_in_closed_form():
    for t in (0.0, 0.2, 0.5, 0.9, 1.0):
        where = torch.tensor(t, dtype=torch.float64)
        assert float(mask_probability(where)) == pytest.approx(0.999 * t + 0.001, abs=1e-15)
        cosine = 1 - 0.999 * math.cos(math.pi * t / 2)
        assert float(mask_probability(where, "cosine")) == pytest.approx(cosine, abs=1e-15)


@pytest.mark.parametrize("name", MDLM)
def test_mdlm_runs_from_zero_to_one_less_eps(name):
    p = mask_probability(grid(), name, 0.01)
    first = 1 - math.exp(-0.01) if name == "mdlm_log" else 0.0
    assert float(p[0]) == pytest.approx(first, abs=1e-15)
    assert float(p[-1]) == pytest.approx(0.99, abs=1e-15)
    assert bool((p.diff() > 0).all())


def test_the_weight_of_mdlm_is_that_of_its_own_words():
    # sigma' / (e^sigma - 1) with sigma = -log(1 - p); 1 / t where p = (1 - eps) t.
    t = grid()[1:]
    for name in MDLM:
        p = mask_probability(t, name)
        weight = mask_slope(t, name) / p
        rate = mask_slope(t, name) / (1 - p)
        torch.testing.assert_close(weight, rate / torch.expm1(-torch.log1p(-p)))
    torch.testing.assert_close(
        mask_slope(t, "mdlm_linear") / mask_probability(t, "mdlm_linear"), 1 / t
    )
    constant = mask_slope(t, "mdlm_log") / mask_probability(t, "mdlm_log")
    assert float(constant.std()) < 1e-12


@pytest.mark.parametrize("name", NOISE + MDLM)
def test_slope_is_the_derivative(name):
    t, h = grid()[1:-1], 1e-6
    numerical = (mask_probability(t + h, name) - mask_probability(t - h, name)) / (2 * h)
    torch.testing.assert_close(mask_slope(t, name), numerical, rtol=0, atol=1e-8)


def test_the_bound_is_the_same_for_every_schedule():
    # E[sum of CE] at mask probability p, for some model; the bound weighs it with p'(t) / p(t).
    def cross_entropy(p):
        return p * (1.5 + torch.sin(3 * p) + p**2)

    values = []
    for name in NOISE:
        t = (grid(200_001)[1:] + grid(200_001)[:-1]) / 2
        p = mask_probability(t, name)
        values.append(float((mask_slope(t, name) / p * cross_entropy(p)).mean()))
    p = torch.linspace(1e-3, 1, 200_001, dtype=torch.float64)
    exact = float(torch.trapezoid(cross_entropy(p) / p, p))
    assert values == pytest.approx([exact, exact], rel=1e-8)


@pytest.mark.parametrize("function", [mask_probability, mask_slope])
def test_unknown_noise_schedule(function):
    with pytest.raises(SettingError, match=r"'cosin' is unknown.*Did you mean cosine or"):
        function(grid(), "cosin")


# Reveal schedules


@pytest.mark.parametrize(
    ("schedule", "shift", "counts"),
    [
        ("shift", 1 / 3, [10, 6, 5, 3, 3, 2, 2, 1]),
        ("shift", 3.0, [2, 2, 2, 2, 4, 4, 7, 9]),
        ("shift", 0.33, [10, 7, 4, 4, 2, 2, 2, 1]),
        ("shift", 1.0, [4] * 8),
        ("linear", 3.0, [4] * 8),
    ],
)
def test_known_counts_of_32_cells_in_8_steps(schedule, shift, counts):
    assert reveal_counts(32, 8, schedule, shift) == counts


def test_even_split_puts_the_remainder_first():
    assert reveal_counts(10, 4) == [3, 3, 2, 2]
    assert reveal_counts(7, 3) == [3, 2, 2]
    assert reveal_counts(3, 8) == [1, 1, 1]
    assert reveal_counts(5, 1) == [5]
    assert reveal_counts(0, 4) == []


def cumulative(t, schedule, shift):
    """sigma(t) as the literature writes it, apart from the library's own code."""
    if schedule == "shift":
        return shift * t / (1 + (shift - 1) * t)
    if schedule == "cosine":
        return 1 - 0.5 * (1 + math.cos(math.pi * t))
    if schedule == "identity" or t in (0, 1):
        return t
    return 0.5 * (1 + math.erf(math.log(t / (1 - t)) / math.sqrt(2)))


def ends_at_one(shift):
    """Whether sigma(1) is 1 in float32; where it rounds below, published lists end otherwise."""
    return float(torch.tensor(shift) / (1 + torch.tensor(shift - 1))) >= 1


def brute_counts(masks, steps, schedule, shift):
    steps = min(steps, masks)
    exact = [cumulative(i / steps, schedule, shift) * masks for i in range(steps + 1)]
    # Published code takes int() of float32 products: next to a whole number they decide, not we.
    assume(all(abs(x - round(x)) > 1e-3 for x in exact[1:-1]))
    ends = [int(x) for x in exact[:-1]] + [masks]
    counts = [max(ends[i + 1] - ends[i], 1) for i in range(steps)]
    i = 0
    while sum(counts) > masks:
        if counts[i % steps] > 1:
            counts[i % steps] -= 1
        i += 1
    counts[-1] += masks - sum(counts)
    return counts[::-1]


@given(
    masks=st.integers(1, 200),
    steps=st.integers(1, 220),
    schedule=st.sampled_from(REVEAL_SCHEDULES),
    shift=st.floats(0.05, 20).filter(ends_at_one),
)
@settings(suppress_health_check=[HealthCheck.filter_too_much])
def test_counts_sum_up_and_are_never_empty(masks, steps, schedule, shift):
    counts = reveal_counts(masks, steps, schedule, shift)
    assert sum(counts) == masks
    assert min(counts) >= 1
    assert len(counts) == min(steps, masks)
    if schedule != "linear":
        assert counts == brute_counts(masks, steps, schedule, shift)


def test_small_shift_reveals_early_and_large_shift_late():
    early, late = reveal_counts(64, 8, "shift", 0.2), reveal_counts(64, 8, "shift", 5.0)
    assert early[0] > 16 > late[0]
    assert early[-1] < 4 < late[-1]


def test_unknown_reveal_schedule():
    with pytest.raises(SettingError, match="Did you mean shift"):
        reveal_counts(8, 4, "shft")


# Random numbers

MASK64 = (1 << 64) - 1


def splitmix(keys):
    """SplitMix64 with unbounded Python integers."""
    state = 0
    for key in keys:
        z = (state + (key + 1) * 0x9E3779B97F4A7C15) & MASK64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
        state = z ^ (z >> 31)
    return ((state >> 11) + 0.5) * 2.0**-53


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4))
def test_uniform_is_splitmix64(keys):
    assert float(uniform(*(torch.tensor(k) for k in keys))) == splitmix(keys)


def test_the_published_sequence_of_splitmix64():
    # The generator's first outputs from seed 0: state k * gamma, key k - 1 here.
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    got = uniform(torch.arange(3)).tolist()
    assert got == [((x >> 11) + 0.5) * 2.0**-53 for x in first]


def test_uniform_broadcasts_and_does_not_depend_on_neighbours():
    rows, cells = torch.arange(5)[:, None], torch.arange(7)[None, :]
    whole = uniform(torch.tensor(3), rows, cells)
    assert whole.shape == (5, 7)
    assert float(uniform(torch.tensor(3), torch.tensor(4), torch.tensor(2))) == float(whole[4, 2])
    assert whole.unique().numel() == 35
    assert not torch.equal(whole, uniform(torch.tensor(4), rows, cells))
    swapped = uniform(torch.tensor(1), torch.tensor(2)), uniform(torch.tensor(2), torch.tensor(1))
    assert swapped[0] != swapped[1]


def test_uniform_moments_and_independence():
    u = uniform(torch.tensor(11), torch.arange(400)[:, None], torch.arange(500)[None, :])
    n = u.numel()
    assert float(u.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * n))
    assert float(u.var()) == pytest.approx(1 / 12, abs=4 / math.sqrt(180 * n))
    for near in (u[1:] * u[:-1], u[:, 1:] * u[:, :-1]):
        assert float(near.mean()) == pytest.approx(0.25, abs=4 * math.sqrt(7 / 144 / n))
    counts = torch.histc(u, 100, 0, 1)
    chi_square = float(((counts - n / 100) ** 2 / (n / 100)).sum())
    assert chi_square < 99 + 4 * math.sqrt(2 * 99)
    assert float(u.min()) > 0 and float(u.max()) < 1


def test_times_are_evenly_spread_in_every_run_of_indices():
    for first in (0, 1, 12345, 10**9):
        for run in (8, 64, 512):
            t = sample_times(torch.arange(first, first + run), seed=7)
            ends = torch.cat([torch.zeros(1), t.sort().values, torch.ones(1)])
            assert float(ends.diff().max()) < 3 / run
            assert float(t.mean()) == pytest.approx(0.5, abs=1.5 / run)


def test_stratified_times_lie_one_in_each_part():
    u = uniform(torch.arange(60))
    t = stratified_times(u, torch.arange(60) % 12, 12)
    for i in range(60):
        assert float(t[i]) == pytest.approx((i % 12 + float(u[i])) / 12, rel=1e-12)
    assert float(stratified_times(torch.tensor(0.5), torch.tensor(12), 12)) < 1 / 12


def test_times_do_not_depend_on_the_batch():
    whole = sample_times(torch.arange(12), seed=1, epoch=2)
    assert whole.dtype == torch.float64
    parts = [sample_times(torch.arange(i, i + 3), seed=1, epoch=2) for i in range(0, 12, 3)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(sample_times(torch.arange(12).view(3, 4), 1, 2), whole.view(3, 4))
    assert not torch.equal(sample_times(torch.arange(12), seed=2, epoch=2), whole)
    assert not torch.equal(sample_times(torch.arange(12), seed=1, epoch=3), whole)
