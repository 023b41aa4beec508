"""Rotary positions on three axes (time, row, column): Qwen2-VL's M-RoPE, arXiv:2409.12191 §2.1.

Text stands at one number on all axes. The cells of a picture share the time of its first cell and
count rows and columns from there; the text behind goes on after the largest number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.errors import InputError


def three_axes(
    pictured_BL: Tensor, grids: Sequence[tuple[int, int]], valid_BL: Tensor
) -> tuple[Tensor, Tensor]:
    """(3, B, L) positions, 0 in padding, and (B, 1) each row's next position less L (Qwen2-VL's
    rope deltas).

    `pictured_BL` marks picture cells, `grids` are the pictures' (columns, rows) of cells in the
    order in which they stand, row after row. Raises InputError where cells and grids do not fit.
    """
    rows, length = pictured_BL.shape
    position = torch.zeros(3, rows, length, dtype=torch.long, device=pictured_BL.device)
    delta = torch.zeros(rows, 1, dtype=torch.long, device=pictured_BL.device)
    coming = iter(grids)
    for row in range(rows):
        columns = valid_BL[row].nonzero()[:, 0]
        numbers = _row(pictured_BL[row, columns].tolist(), coming)
        position[:, row, columns] = numbers.to(position.device)
        delta[row] = int(numbers.max()) + 1 - length if len(columns) else -length
    if next(coming, None) is not None:
        raise InputError("there are more pictures than image cells")
    return position, delta


def _row(pictured: list[bool], grids: Iterator[tuple[int, int]]) -> Tensor:
    """(3, n) positions of one row without padding; takes its pictures' grids from the iterator."""
    parts = [torch.zeros(3, 0, dtype=torch.long)]
    place = following = 0
    while place < len(pictured):
        if pictured[place]:
            columns, rows = next(grids, (0, 0))
            cells = columns * rows
            if not 0 < cells == sum(pictured[place : place + cells]):
                raise InputError(f"the picture at cell {place} does not fill {cells} image cells")
            offset = torch.arange(cells)
            part = torch.stack([torch.zeros_like(offset), offset // columns, offset % columns])
            step = max(columns, rows)
        else:
            cells = step = [*pictured[place:], True].index(True)
            part = torch.arange(cells).expand(3, -1)
        parts.append(part + following)
        place, following = place + cells, following + step
    return torch.cat(parts, dim=1)


def of_canvas(canvas: Canvas) -> Tensor:
    """(3, B, L) positions of a canvas whose pictures, if any, have grids in `features.blocks`."""
    pictured = torch.zeros_like(canvas.valid)
    grids: list[tuple[int, int]] = []
    if canvas.features is not None:
        blocks = canvas.features.blocks or []
        pictured.view(-1)[canvas.features.cells] = True
        starts = [0, *accumulate(block.cells for block in blocks)]
        first = dict(zip(starts, blocks, strict=False))
        shown = [first[s] for s in canvas.features.source.tolist() if s in first]
        grids = [block.grid for block in shown if block.grid is not None]
    return three_axes(pictured, grids, canvas.valid)[0]
