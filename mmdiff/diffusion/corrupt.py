"""Forward masking: which answer cells become noise.

All functions are pure; the uniform numbers come in, so the same numbers give the same masks. A rule
(u < p, `with_at_least_one`, `exact_share`) says which cells of copy 0 or 1 are chosen; `halves`
turns this into the masks of single rows and of complementary pairs.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.diffusion.arrange import offsets


def halves(chosen: Tensor, writable: Tensor, copy: Tensor) -> Tensor:
    """Masked cells of single rows and complementary pairs at once; all (B, L).

    Copy 2 is the other half of a pair: where its twin chose the same cells, it is masked exactly
    where the twin is not, so the masks of a pair partition the answer (LaViDa, arXiv:2505.16839
    §3.2).
    """
    return writable & (chosen ^ (copy == 2))


def masked_cells(u: Tensor, p: Tensor, writable: Tensor, copy: Tensor) -> Tensor:
    """Masked cells (B, L), each with its own draw: u < p, or in copy 2 its contrary."""
    return halves(u < p, writable, copy)


def exact_cells(u: Tensor, p: Tensor, writable: Tensor) -> Tensor:
    """Masked cells of rows that mask a fixed number: round(n p), at least one, of n writable cells,
    those of lowest u (MaskGIT and MMaDA, image codes). u, writable (B, L), p (B, 1)."""
    return _highest(-u, p.expand_as(u), writable, torch.zeros_like(u, dtype=torch.long), 1)


def corrupt(canvas: Canvas, masked: Tensor, noise: int | Tensor) -> Canvas:
    """The canvas with noise in the `masked` cells (B, L): the mask id, or ids (B, L)."""
    return replace(canvas, ids=torch.where(masked, noise, canvas.ids), masked=masked)


def frontier(canvas: Canvas, draw: Tensor, size: int, empty: bool = False) -> tuple[Tensor, Tensor]:
    """(B, L) bool twice: the cells of one block of each answer, and all cells behind it.

    An answer is cut into blocks of `size` cells, of which the `draw` (B, L), one number of [0, 1)
    per answer, chooses one: decoding stands there, all before it is decided, all behind it masked
    (dParallel, czg1225/dParallel `llada_train.py`). Where the blocks fill the answer, the published
    code may choose an `empty` one behind them.
    """
    answer = canvas.writable & canvas.valid
    offset = offsets(canvas, answer)
    last = offset.new_zeros(len(offset), int(canvas.segment.max()) + 1)
    last.scatter_reduce_(1, canvas.segment, torch.where(answer, offset, 0), reduce="amax")
    cells = last.gather(1, canvas.segment) + 1
    blocks = cells // size + 1 if empty else (cells - 1) // size + 1
    chosen = torch.minimum((draw * blocks).long(), blocks - 1)
    block = offset // size
    return answer & (block == chosen), answer & (block > chosen)


def answers(canvas: Canvas, by_block: bool = False) -> Tensor:
    """(B, L) long: a number per row, the same in all cells of one copy of one answer (or block)."""
    number = canvas.segment * 3 + canvas.copy
    return number * (int(canvas.block.max()) + 1) + canvas.block if by_block else number


def with_at_least_one(u: Tensor, p: Tensor, among: Tensor, group: Tensor) -> Tensor:
    """(B, L) bool: u < p, and in every group its cell `among` (B, L) of the least u (LaViDa)."""
    flat = _flat(group, among)
    least = u.new_full((int(flat.max()) + 1,), 2.0)
    least.scatter_reduce_(0, flat, u.flatten(), reduce="amin")
    return (u < p) | (among & (u <= least[flat].view_as(u)))


def exact_share(
    u: Tensor,
    p: Tensor,
    among: Tensor,
    group: Tensor,
    half_life: float | None = None,
    least: int = 0,
) -> Tensor:
    """(B, L) bool: exactly k = round(p n) of the n cells `among` each group, at least `least`.

    Without `half_life` every such set is as likely as another. With it later cells are masked
    first, the more so the fewer are: cell i has weight exp(lambda (1 - p) i), lambda = ln 2 /
    (half_life n), in a draw without replacement (Gumbel top-k; Efficient-DLM, arXiv:2512.14067,
    NeMo Automodel `corruption.py`). p (B, L) is one number within a group.
    """
    key = -torch.log(-torch.log(u.double().clamp(1e-9, 1 - 1e-9)))
    if half_life is not None:
        flat = _flat(group, among)
        index = _place(flat, torch.arange(len(flat), device=flat.device)).view_as(group)
        sizes = torch.bincount(flat)[flat].view_as(group)
        key = key + math.log(2) / (half_life * sizes) * (1 - p.double()) * index
    return _highest(key, p, among, group, least)


def _highest(key: Tensor, p: Tensor, among: Tensor, group: Tensor, least: int) -> Tensor:
    """(B, L) bool: in every group the round(p n) cells `among` it of highest key, at least `least`;
    equal ones from the left."""
    flat = _flat(group, among)
    sizes = torch.bincount(flat)[flat]
    count = torch.minimum(torch.round(p.flatten() * sizes).long().clamp(min=least), sizes)
    order = key.flatten().argsort(descending=True, stable=True)
    return (_place(flat, order) < count).view_as(among) & among


def _flat(group: Tensor, among: Tensor) -> Tensor:
    """(B * L,) numbers of groups, different in different rows; cells not `among` share the last."""
    row = torch.arange(len(group), device=group.device)[:, None]
    number = row * (group.max() + 1) + group
    return torch.where(among, number, number.max() + 1).flatten()


def _place(flat: Tensor, order: Tensor) -> Tensor:
    """(n,) how many cells of its group come before each cell in `order` (n,)."""
    order = order[flat[order].argsort(stable=True)]
    sizes = torch.bincount(flat)
    starts = sizes.cumsum(0) - sizes
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device) - starts[flat[order]]
    return place
