"""The weighted masked cross-entropy: weight and denominator as independent settings.

loss = sum over scored cells of w_i CE_i / denominator. The scored cells are the masked ones, and
with ReDiff's revision the answer's other cells, too. The table of what published trainers really
compute is in docs/training.md; each is a choice of these settings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.errors import SettingError

WEIGHTS = ("one", "inverse_p", "elbo", "cart")
DENOMINATORS = ("answer", "masked", "row", "root", "group", "examples", "batch")
MASKED, REPLACED, KEPT = range(3)  # the groups of denominator=group


def cell_weight(
    p: Tensor, copy: Tensor, weight: str = "one", slope: Tensor | None = None
) -> Tensor:
    """w_i (B, L) from the mask probability p of each cell (`cart`: see `cart_weight`).

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


def cart_weight(masked: Tensor, position: Tensor, see: Tensor, p: float = 0.3) -> Tensor:
    """w_n (B, L) = 1/2 sum over the given cells i that n sees of p (1 - p)^(|n - i| - 1).

    Dream's context-adaptive weight (CART, arXiv:2508.15487 eq. 5): cells with near context count
    more. `masked` and `position` are (B, L), `see` (B, L, L) bool; 0 for cells that are not masked.
    """
    distance = (position[:, :, None] - position[:, None, :]).abs()
    near = p * (1 - p) ** (distance - 1).clamp(min=0)
    given = see & ~masked[:, None, :] & (distance > 0)
    return torch.where(masked, 0.5 * (near * given).sum(2), 0.0)


def denominator(
    writable: Tensor,
    scored: Tensor,
    copy: Tensor,
    kind: str = "answer",
    segment: Tensor | None = None,
    group: Tensor | None = None,
) -> Tensor:
    """What cells are divided by, (B, 1), or (B, L) where examples share a row as its segments: each
    cell's own part times the batch's (`parts_of_denominator`), which is never below 1."""
    own, total = parts_of_denominator(writable, scored, copy, kind, segment, group)
    return own * total.clamp(min=1)


def parts_of_denominator(
    writable: Tensor,
    scored: Tensor,
    copy: Tensor,
    kind: str = "answer",
    segment: Tensor | None = None,
    group: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Each cell's own part (B, 1) or (B, L) of its denominator, and the batch's, a scalar that adds
    up over the parts that a batch is computed in.

    `answer`: answer cells of the batch, a complementary pair counted once (LaViDa); `masked`:
    scored cells of the batch (Dimple); `row`: each example by its n answer cells, then by the
    examples (LLaDA SFT); `root`: each by sqrt(n), then by the sum of sqrt(n) over examples (the
    square averaging of InternVL2.5, arXiv:2412.05271: between `answer`, where long answers rule,
    and `row`, where short ones do); `group`: the example's scored cells of the cell's `group`
    (B, L; MASKED, REPLACED or KEPT) in its copy, then the examples (ReDiff); `examples`: the
    examples (dllm's `batch`); `batch`: B * L (LLaDA pre-training). Own parts are never below 1, so
    empty rows stay finite.
    """
    if kind in ("row", "root", "group", "examples"):
        return _by_example(writable, scored, copy, kind, segment, group)
    if kind == "answer":
        total = (writable & (copy != 2)).sum()
    elif kind == "masked":
        total = scored.sum()
    elif kind == "batch":
        total = torch.tensor(writable.numel(), device=writable.device)
    else:
        known = ", ".join(DENOMINATORS)
        raise SettingError(f"loss denominator {kind!r} is unknown; choose one of {known}")
    return torch.ones_like(writable[:, :1], dtype=torch.long), total


def _by_example(
    writable: Tensor,
    scored: Tensor,
    copy: Tensor,
    kind: str,
    segment: Tensor | None,
    group: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The kinds that count by example: an example is a row, or a segment of one."""
    answer = writable & (copy != 2)
    if segment is None:
        segment = torch.zeros_like(writable, dtype=torch.long)
    # A second half in a row of its own belongs to the example of its twin's row.
    twin = writable.any(1, keepdim=True) & ~answer.any(1, keepdim=True)
    cells = _counts(segment, torch.where(twin, writable, answer))
    if kind == "root":
        cells = cells.sqrt()
        share = cells.sum(1, keepdim=True)
    else:  # a row without an answer is one example, too
        share = (cells > 0).sum(1, keepdim=True).clamp(min=1)
    examples = share[~twin].sum()
    if kind == "examples":
        return torch.ones_like(writable[:, :1], dtype=torch.long), examples
    if kind == "group" and group is not None:
        segment = (segment * 3 + copy) * 3 + group
        cells = _counts(segment, scored)
    return cells.gather(1, segment).clamp(min=1), examples


def _counts(number: Tensor, counted: Tensor) -> Tensor:
    """(B, n) float: how many of the `counted` cells (B, L) of each row bear each number."""
    cells = torch.zeros(len(number), int(number.max()) + 1, device=number.device)
    return cells.scatter_add_(1, number, counted.float())


def cross_entropy(logits_KV: Tensor, targets_K: Tensor, without: int | None = None) -> Tensor:
    """(K,) of each cell, in float32 at least; the id `without` takes no part in the softmax (the
    mask token in MDLM's SUBS parametrisation)."""
    logits = logits_KV if logits_KV.dtype == torch.float64 else logits_KV.float()
    if without is not None:
        column = torch.arange(logits.shape[1], device=logits.device) == without
        logits = logits.masked_fill(column, float("-inf"))
    return F.cross_entropy(logits, targets_K, reduction="none")


def masked_loss(
    logits_KV: Tensor,
    targets_K: Tensor,
    weight_K: Tensor,
    denominator_K: Tensor,
    without: int | None = None,
) -> Tensor:
    """Scalar: sum of weight * cross-entropy / denominator over the K scored cells (0 if K = 0).

    Logits are those of the scored cells alone, in row-major order: the head never runs on others.
    """
    if targets_K.numel() == 0:
        return logits_KV.sum() * 0
    ce = cross_entropy(logits_KV, targets_K, without)
    return (ce * weight_K / denominator_K.to(ce.dtype)).sum()


def certainty(
    logits_KV: Tensor, targets_K: Tensor, example_K: Tensor, temperature: float = 0.5
) -> Tensor:
    """Scalar: the entropy of softmax(logits / temperature), its mean over those cells of an example
    (numbers (K,)) whose likeliest token is the target, summed over the examples (0 without such a
    cell). Certainty forcing of dParallel (arXiv:2509.26488; czg1225/dParallel `llada_train.py`).
    """
    if targets_K.numel() == 0:
        return logits_KV.sum() * 0
    logits = logits_KV if logits_KV.dtype == torch.float64 else logits_KV.float()
    right = (logits.argmax(1) == targets_K).to(logits.dtype)
    logp = (logits / temperature).log_softmax(1)
    entropy = -(logp.exp() * logp).sum(1)
    counts = right.new_zeros(int(example_K.max()) + 1).scatter_add(0, example_K, right)
    return (entropy * right / counts[example_K].clamp(min=1)).sum()


def shift_right(rows_BLX: Tensor) -> Tensor:
    """Row i of the result is row i-1 of the input (row 0 stays): Dream and Dimple predict cell i at
    position i-1. The model shifts its hidden states with it; losses on raw logits, the logits."""
    return torch.cat([rows_BLX[:, :1], rows_BLX[:, :-1]], dim=1)
