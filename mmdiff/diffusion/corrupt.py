"""Forward masking: which answer cells become noise.

All functions are pure; the uniform numbers come in, so the same numbers give the same masks.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mmdiff.canvas import Canvas


def masked_cells(u: Tensor, p: Tensor, writable: Tensor, copy: Tensor) -> Tensor:
    """Masked cells of single rows and complementary pairs at once; all (B, L).

    A cell of copy 0 or 1 is masked when u < p. Copy 2 is the other half of a pair: with the same u
    and p as its twin it is masked exactly when the twin is not, so the masks of a pair partition
    the answer (LaViDa, arXiv:2505.16839 §3.2).
    """
    return writable & ((u < p) ^ (copy == 2))


def exact_cells(u: Tensor, p: Tensor, writable: Tensor) -> Tensor:
    """Masked cells of rows that mask a fixed number: round(n p), at least one, of n writable cells,
    those of lowest u (MaskGIT and MMaDA, image codes). u, writable (B, L), p (B, 1)."""
    count = (writable.sum(1, keepdim=True) * p).round().clamp(min=1)
    order = torch.where(writable, u, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    return writable & (order < count)


def corrupt(canvas: Canvas, u: Tensor, p: Tensor, mask_id: int) -> tuple[Canvas, Tensor]:
    """The canvas with its writable cells noised, and the clean ids (B, L) as targets."""
    masked = masked_cells(u, p, canvas.writable, canvas.copy)
    noisy = torch.where(masked, mask_id, canvas.ids)
    return replace(canvas, ids=noisy, masked=masked), canvas.ids
