"""The weighted masked cross-entropy: weight, denominator and shift as independent settings.

loss = sum over masked cells of w_i CE_i / denominator. The table of what published trainers really
compute is in docs/training.md; each is a choice of these settings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.errors import SettingError

WEIGHTS = ("one", "inverse_p", "elbo")
DENOMINATORS = ("answer", "masked", "row", "root", "batch")


def cell_weight(
    p: Tensor, copy: Tensor, weight: str = "one", slope: Tensor | None = None
) -> Tensor:
    """w_i (B, L) from the mask probability p of each cell.

    `one`: LaViDa, Dimple. `inverse_p`: 1 / p (LLaDA, GUIDELINES.md). `elbo`: p'(t) / p with `slope`
    p'(t), the exact bound for any schedule (MDLM, arXiv:2406.07524). The second half of a
    complementary pair was masked with 1 - p: it divides by 1 - p and both halves stay unbiased.
    """
    if weight == "one":
        return torch.ones_like(p)
    chance = torch.where(copy == 2, 1 - p, p)
    if weight == "inverse_p":
        return 1 / chance
    if weight == "elbo" and slope is not None:
        return slope / chance
    raise SettingError(f"loss weight {weight!r} is unknown; choose one of {', '.join(WEIGHTS)}")


def visible_weight(p: Tensor, masked: Tensor, least: float = 0.3) -> Tensor:
    """Weights (B, L) where visible cells are targets too: 1 in masked cells, 1 - (1 - least)(1 - p)
    in visible ones, the more the more was masked, p (B, 1) (MMaDA `get_loss_weight`)."""
    return torch.where(masked, 1.0, 1 - (1 - least) * (1 - p))


def denominator(
    writable: Tensor,
    masked: Tensor,
    copy: Tensor,
    kind: str = "answer",
    segment: Tensor | None = None,
) -> Tensor:
    """What cells are divided by, (B, 1), or (B, L) where examples share a row as its segments.

    `answer`: answer cells of the batch, a complementary pair counted once (LaViDa); `masked`:
    masked cells of the batch (Dimple); `row`: each example by its n answer cells, then by the
    examples (LLaDA SFT); `root`: each by sqrt(n), then by the sum of sqrt(n) over examples (the
    square averaging of InternVL2.5, arXiv:2412.05271: between `answer`, where long answers rule,
    and `row`, where short ones do); `batch`: B * L (LLaDA pre-training). Never below 1, so empty
    rows stay finite.
    """
    answer = writable & (copy != 2)
    rows = writable.shape[0]
    if kind in ("row", "root"):
        return _by_example(writable, answer, kind, segment)
    if kind == "answer":
        total = answer.sum()
    elif kind == "masked":
        total = masked.sum()
    elif kind == "batch":
        total = torch.tensor(writable.numel(), device=writable.device)
    else:
        known = ", ".join(DENOMINATORS)
        raise SettingError(f"loss denominator {kind!r} is unknown; choose one of {known}")
    return total.clamp(min=1).expand(rows, 1)


def _by_example(writable: Tensor, answer: Tensor, kind: str, segment: Tensor | None) -> Tensor:
    """`row` and `root`: an example is a row, or a segment of one."""
    if segment is None:
        segment = torch.zeros_like(writable, dtype=torch.long)
    # A second half in a row of its own belongs to the example of its twin's row.
    twin = writable.any(1, keepdim=True) & ~answer.any(1, keepdim=True)
    cells = torch.zeros(len(writable), int(segment.max()) + 1, device=writable.device)
    cells.scatter_add_(1, segment, torch.where(twin, writable, answer).float())
    if kind == "root":
        cells = cells.sqrt()
        share = cells.sum(1, keepdim=True)
    else:  # a row without an answer is one example, too
        share = (cells > 0).sum(1, keepdim=True).clamp(min=1)
    examples = share[~twin].sum().clamp(min=1)
    return cells.gather(1, segment).clamp(min=1) * examples


def masked_loss(
    logits_KV: Tensor, targets_K: Tensor, weight_K: Tensor, denominator_K: Tensor
) -> Tensor:
    """Scalar: sum of weight * cross-entropy / denominator over the K masked cells (0 if K = 0).

    Logits are those of the masked cells alone, in row-major order: the head never runs on others.
    """
    if targets_K.numel() == 0:
        return logits_KV.sum() * 0
    ce = F.cross_entropy(logits_KV.float(), targets_K, reduction="none")
    return (ce * weight_K / denominator_K).sum()


def shift_right(rows_BLX: Tensor) -> Tensor:
    """Row i of the result is row i-1 of the input (row 0 stays): Dream and Dimple predict cell i at
    position i-1. The model shifts its hidden states with it; losses on raw logits, the logits."""
    return torch.cat([rows_BLX[:, :1], rows_BLX[:, :-1]], dim=1)
