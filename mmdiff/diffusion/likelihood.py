"""Monte-Carlo bound on the log-likelihood of an answer, with its standard error.

-log p(x) <= E_k E_M [ n / k * sum over the k masked cells of CE ], k uniform on 1..n and M a
uniform set of k cells: the any-order form of the masked-diffusion bound (LLaDA, arXiv:2502.09992
eq. 6, `get_log_likelihood.py`). The same (seed, sample) gives the same masks for every candidate
answer of one length, so that comparisons between candidates share their noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.diffusion.schedule import uniform
from mmdiff.errors import SettingError


@dataclass(frozen=True)
class Bound:
    """`nll` is an upper bound on -log p in nats, `error` the standard error of its estimate."""

    nll: float
    error: float
    samples: int


def mask_counts(cells: int, samples: int, seed: int) -> Tensor:
    """(samples,) stratified numbers of masked cells in 1..cells.

    One offset shared by all strata: sample i takes floor(cells * frac(u + i / samples)) + 1.
    """
    u = uniform(torch.tensor(seed), torch.tensor(0xC0))
    place = torch.frac(u + torch.arange(samples).double() / samples)
    return (place * cells).long().clamp(max=cells - 1) + 1


def random_masks(cells: int, counts: Tensor, seed: int) -> Tensor:
    """(samples, cells) bool with exactly counts[i] True in row i, uniform over such sets."""
    sample = torch.arange(len(counts))[:, None]
    u = uniform(torch.tensor(seed), sample, torch.arange(cells)[None, :])
    place = u.argsort(1).argsort(1)
    return place < counts[:, None]


def published_draws(cells: int, samples: int, batch: int) -> tuple[Tensor, Tensor]:
    """(masks, counts) as LLaDA's `get_log_likelihood.py` draws them from torch's global generator:
    per batch one k, then a permutation for each sample. Samples that fill no batch are dropped."""
    masks, counts = [], []
    for _ in range(samples // batch):
        k = int(torch.randint(1, cells + 1, ()))
        number = published_counts(k, cells, batch)
        below = torch.arange(cells) < number[:, None]
        masks += [row[torch.randperm(cells)] for row in below]
        counts.append(number)
    return torch.stack(masks), torch.cat(counts)


def published_counts(k: int, cells: int, batch: int) -> Tensor:
    """(batch,) numbers of masked cells in 1..cells: evenly spaced from k on, wrapping around."""
    even = torch.linspace(float(k), k + (batch - 1) * (cells / batch), steps=batch)
    return (torch.round(even).long() - 1) % cells + 1


def bound(
    score: Callable[[Tensor], Tensor],
    answer: Tensor,
    samples: int = 128,
    seed: int = 0,
    compat: str = "none",
    batch: int = 16,
) -> Bound:
    """The bound for one answer (N,) of ids.

    `score(masks)` takes masks (samples, N) and returns logits (K, V) of the masked cells,
    row-major, of canvases in which exactly these cells are noise. `compat=llada` draws the masks as
    LLaDA does, in batches of `batch`. Raises SettingError for another `compat`, or a batch that
    `samples` does not fill.
    """
    cells = answer.numel()
    if cells == 0:
        return Bound(0.0, 0.0, samples)
    if compat == "llada":
        if samples < batch:
            raise SettingError(f"{samples} samples fill no batch of {batch}; ask for more of them")
        masks, counts = published_draws(cells, samples, batch)
        return estimate(score(masks), answer, masks, counts)
    if compat != "none":
        raise SettingError(f"compat {compat!r} is unknown; choose one of none, llada")
    counts = mask_counts(cells, samples, seed)
    masks = random_masks(cells, counts, seed)
    return estimate(score(masks), answer, masks, counts)


def estimate(logits: Tensor, answer: Tensor, masks: Tensor, counts: Tensor) -> Bound:
    """The bound from logits (K, V) of the masked cells, row-major: masks (samples, N) have `counts`
    (samples,) cells each."""
    cells, samples = answer.numel(), len(masks)
    targets = answer.expand(samples, -1)[masks.to(answer.device)]
    ce = F.cross_entropy(logits.double(), targets, reduction="none").cpu()
    total = torch.zeros(samples, dtype=torch.float64)
    total.index_add_(0, masks.nonzero()[:, 0], ce)
    each = total * cells / counts
    # Strata lower the variance, so this error (of independent samples) is on the safe side.
    error = float(each.std() / samples**0.5) if samples > 1 else float("nan")
    return Bound(float(each.mean()), error, samples)
