"""Noise schedules (training) and reveal schedules (decoding).

alpha(t) is the probability that a token is kept at time t in [0, 1]; p = 1 - alpha the probability
that it is masked. The continuous-time bound weighs the cross-entropy with
-alpha'(t) / (1 - alpha(t)) (MDLM, arXiv:2406.07524 eq. 10); it does not depend on the schedule,
only its variance does.
"""

from __future__ import annotations

import math
import re
from itertools import pairwise

import torch
from torch import Tensor

from mmdiff.errors import SettingError, nearest

GOLDEN_RATIO = 0.6180339887498949


NOISE_SCHEDULES = ("linear", "cosine", "mdlm_linear", "mdlm_cosine", "mdlm_log")


def mask_probability(t: Tensor, schedule: str = "linear", eps: float = 1e-3) -> Tensor:
    """p(t). From eps to 1: linear (1 - eps) t + eps (LLaDA), cosine 1 - (1 - eps) cos(pi t / 2).

    From 0 to 1 - eps, as MDLM's `noise_schedule.py` has them: mdlm_linear (1 - eps) t and
    mdlm_cosine (1 - eps) (1 - cos(pi t / 2)). mdlm_log: log p is linear in t, from `log_ends(eps)`
    (MDLM's importance sampling, and its change of variables: the weight of the bound is constant).
    """
    if schedule == "linear":
        return (1 - eps) * t + eps
    if schedule == "cosine":
        return 1 - (1 - eps) * torch.cos(math.pi / 2 * t)
    if schedule == "mdlm_linear":
        return (1 - eps) * t
    if schedule == "mdlm_cosine":
        return (1 - eps) * (1 - torch.cos(math.pi / 2 * t))
    if schedule == "mdlm_log":
        first, last = log_ends(eps)
        return torch.exp(first + (last - first) * t)
    raise SettingError(unknown("noise schedule", schedule, NOISE_SCHEDULES))


def mask_slope(t: Tensor, schedule: str = "linear", eps: float = 1e-3) -> Tensor:
    """p'(t), so that p'(t) / p(t) is the weight of the bound."""
    if schedule in ("linear", "mdlm_linear"):
        return torch.full_like(t, 1 - eps)
    if schedule in ("cosine", "mdlm_cosine"):
        return (1 - eps) * math.pi / 2 * torch.sin(math.pi / 2 * t)
    if schedule == "mdlm_log":
        first, last = log_ends(eps)
        return (last - first) * mask_probability(t, schedule, eps)
    raise SettingError(unknown("noise schedule", schedule, NOISE_SCHEDULES))


def log_ends(eps: float) -> tuple[float, float]:
    """log p(0) and log p(1) of mdlm_log: log(1 - e^-eps), log(1 - eps)."""
    return math.log(-math.expm1(-eps)), math.log1p(-eps)


def sample_times(index: Tensor, seed: int, epoch: int = 0) -> Tensor:
    """Low-discrepancy t in [0, 1) by global sample index: frac(u(seed, epoch) + 0.618... index).

    A golden-ratio sequence: any run of consecutive indices covers [0, 1) evenly, whatever the batch
    size, accumulation or number of processes. float64, same shape as `index`.
    """
    start = uniform(torch.tensor([seed]), torch.tensor([epoch]), torch.tensor([0x7133]))
    return torch.frac(start.to(index.device) + GOLDEN_RATIO * index.double())


def stratified_times(u: Tensor, place: Tensor, strata: int) -> Tensor:
    """t in [0, 1), one from each of `strata` equal parts: ((place + u) / strata) mod 1, with `u`
    uniform and `place` the number of the part (MDLM and BD3-LM, `_sample_t`)."""
    return torch.remainder((place + u) / strata, 1)


def reveal_counts(
    masks: int, steps: int, schedule: str = "linear", shift: float = 3.0
) -> list[int]:
    """How many of `masks` cells each step reveals: sums to `masks`, at least one per step.

    linear: masks // steps each, the remainder first (LLaDA `generate.py`). Others follow LaViDa's
    `generate.py`: with sigma(i / S), counts are the differences of int(sigma masks), raised to at
    least 1, the excess taken round-robin from the front, then reversed in time. `shift` uses
    sigma = s t / (1 + (s - 1) t): s < 1 reveals many cells early. Steps beyond `masks` are dropped.
    """
    if masks <= 0:
        return []
    steps = max(1, min(steps, masks))
    if schedule == "linear":
        return [masks // steps + (i < masks % steps) for i in range(steps)]
    # float32, as published: int() of a product near a whole number depends on it.
    sigma = _sigma(torch.linspace(0, 1, steps + 1), schedule, shift)
    ends = (sigma * masks).long().tolist()
    counts = [max(1, b - a) for a, b in pairwise(ends)]
    excess = sum(counts) - masks
    while excess > 0:
        for i in range(steps):
            if counts[i] > 1 and excess > 0:
                counts[i] -= 1
                excess -= 1
    counts[-1] += -excess
    return counts[::-1]


def origin_chance(step: Tensor, steps: int, eps: float) -> Tensor:
    """(K,) chance 1 - s/t that a masked cell is decided in step 0, 1, ... (K,) of `steps`, between
    the times t > s of a grid from 1 to eps; 1 in the last (Dream's alg=origin, MDLM)."""
    time = torch.linspace(1, eps, steps + 1, device=step.device)
    step = step.clamp(max=steps - 1)
    return torch.where(step < steps - 1, 1 - time[step + 1] / time[step], 1.0)


def timestep_counts(masks: int, steps: int, eps: float = 1e-3, at_least: bool = True) -> list[int]:
    """Cells revealed per step on the time grid linspace(1, eps, steps + 1) of Dream's sampler:
    int(left * (1 - s / t)), the last step the rest.

    The published int() reveals nothing in a step whose share is below one cell; `at_least` makes
    that one cell.
    """
    time = torch.linspace(1, eps, steps + 1)
    counts: list[int] = []
    for i in range(steps):
        left = masks - sum(counts)
        share = int(left * (1 - time[i + 1] / time[i])) if i < steps - 1 else left
        counts.append(min(left, max(share, int(at_least))))
    return [n for n in counts if n] if at_least else counts


def ratio_share(
    left: int, total: int, step: int, steps: int, eps: float = 1e-3
) -> tuple[int, float]:
    """(cells, chance per cell) that step 0, 1, ... reveals of `left` masked cells of `total`:
    int(left * (1 - s / t)) and 1 - s / t, all in the last step.

    t = left / total says where the row stands, whatever it revealed before; s is the first time of
    linspace(1, eps, steps + 1) that lies below t and behind this step and reveals a cell (Dimple
    `generation_utils.py`, decoding_pipeline="dim").
    """
    time = torch.linspace(1, eps, steps + 1)
    now = torch.tensor(left) / total
    first = max(int((time >= now).sum()), step + 1)
    chance = 1 - time[first:-1] / now
    cells = (left * chance).long()
    enough = (cells >= 1).nonzero()[:, 0].tolist()
    return (int(cells[enough[0]]), float(chance[enough[0]])) if enough else (left, 1.0)


def rate_counts(masks: int, cells: int, steps: int) -> list[int]:
    """The even split of a block of `cells` cells, for as long as its `masks` last: a block that is
    partly given takes fewer steps, not smaller ones (SDAR `generate.py`). The last count may be
    more than what is left."""
    counts: list[int] = []
    for count in reveal_counts(cells, steps):
        if sum(counts) < masks:
            counts.append(count)
    return counts


def mask_ratio(t: Tensor, schedule: str = "cosine") -> Tensor:
    """The fraction of cells masked at progress t in [0, 1] (MaskGIT, arXiv:2202.04200 §3.3): cosine
    cos(pi t / 2), linear 1 - t, pow<e> 1 - t**e, sigmoid (from -3 to 3). All but cosine stay above
    1e-6 (MMaDA `sampling.py`). Training draws t uniformly; decoding walks from 0 to 1.
    """
    if schedule == "cosine":
        return torch.cos(t * math.pi * 0.5)
    if schedule == "linear":
        left = 1 - t
    elif schedule == "sigmoid":
        first, last = (torch.sigmoid(torch.tensor(x)) for x in (-3.0, 3.0))
        left = (last - torch.sigmoid(t * 6 - 3)) / (last - first)
    elif re.fullmatch(r"pow(\d+\.?\d*|\.\d+)", schedule):
        left = 1 - t ** float(schedule[3:])
    else:
        raise SettingError(unknown("mask schedule", schedule, MASK_SCHEDULES))
    return left.clamp(1e-6, 1.0)


MASK_SCHEDULES = ("cosine", "linear", "sigmoid", "pow2")  # and any other power
REVEAL_SCHEDULES = ("linear", "shift", "cosine", "logit_normal", "identity")


def _sigma(t: Tensor, schedule: str, shift: float) -> Tensor:
    if schedule == "shift":
        return shift * t / (1 + (shift - 1) * t)
    if schedule == "cosine":
        return 1 - 0.5 * (1 + torch.cos(math.pi * t))
    if schedule == "logit_normal":
        return 0.5 * (1 + torch.erf(torch.logit(t) / math.sqrt(2)))
    if schedule == "identity":
        return t
    raise SettingError(unknown("schedule", schedule, REVEAL_SCHEDULES))


def unknown(kind: str, name: str, known: tuple[str, ...]) -> str:
    return f"{kind} {name!r} is unknown; choose one of {', '.join(known)}.{nearest(name, known)}"


def uniform(*keys: Tensor) -> Tensor:
    """U(0, 1) as a pure function of integer keys (broadcast together); float64.

    SplitMix64 finalisers chained over the keys (Steele et al. 2014, "Fast splittable pseudorandom
    number generators"); the top 53 bits become the fraction, shifted by half a step off zero.
    """
    state = torch.zeros((), dtype=torch.int64, device=keys[0].device)
    for key in keys:
        state = _mix(state + key.long() * _GAMMA + _GAMMA)
    return ((state >> 11) & ((1 << 53) - 1)).double().add_(0.5) * 2.0**-53


_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    z = (z ^ _shift(z, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's is arithmetic, so the copied sign bits are cleared."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
