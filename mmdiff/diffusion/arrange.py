"""How a clean canvas is laid out for an objective: pairs, clean context, turns."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from mmdiff.canvas import Canvas


def paired(canvas: Canvas) -> Canvas:
    """(2B, L): every row twice, as the two halves of complementary pairs, for the full layout.

    First halves come first (LaViDa, Dimple). Both look at the same encoded pictures.
    """
    rows, length = canvas.shape
    tensors: dict[str, Any] = {
        f.name: torch.cat([value, value], dim=-2)
        for f in fields(canvas)
        if isinstance(value := getattr(canvas, f.name), Tensor)
    }
    tensors["copy"] = torch.ones_like(tensors["copy"])
    tensors["copy"][rows:] = 2
    features = canvas.features
    if features is not None:
        features = replace(
            features,
            source=torch.cat([features.source, features.source]),
            cells=torch.cat([features.cells, features.cells + rows * length]),
        )
    return replace(canvas, features=features, **tensors)


def with_context(canvas: Canvas, block_length: int) -> Canvas:
    """(B, L + n): the canvas with a clean twin of every answer cell behind it, for block diffusion.

    Answers are cut into blocks of `block_length` cells. A noisy cell sees its own block and the
    clean twins of earlier ones (block layout; BD3-LM, arXiv:2503.09573 §3.2: one pass over
    [x_t | x_0]). Twins share ids, position, segment and block, are copy 0 and never written; n is
    the longest row's answer cells, other rows are padded.
    """
    length = canvas.shape[1]
    answer = canvas.block > 0
    blocks = torch.where(answer, 1 + offsets(canvas, answer) // block_length, 0)
    copy = torch.where(canvas.writable & (canvas.copy == 0), 1, canvas.copy)
    told = canvas.writable & canvas.valid & (copy == 1)
    size = int(told.sum(1).max())
    order = told.long().argsort(dim=1, descending=True, stable=True)[:, :size]
    real = told.gather(1, order)
    noisy = replace(canvas, block=blocks, copy=copy)
    tensors: dict[str, Any] = {
        f.name: torch.cat([value, value.gather(-1, order.expand(*value.shape[:-1], size))], dim=-1)
        for f in fields(noisy)
        if isinstance(value := getattr(noisy, f.name), Tensor)
    }
    tensors["valid"][:, length:] = real
    tensors["copy"][:, length:] = 0
    tensors["writable"][:, length:] = False
    features = canvas.features
    if features is not None:
        width = length + size
        cells = features.cells // length * width + features.cells % length
        features = replace(features, cells=cells)
    return replace(noisy, features=features, **tensors)


def offsets(canvas: Canvas, answer: Tensor) -> Tensor:
    """(B, L) long: how far each answer cell lies behind the first one of its segment."""
    segments = int(canvas.segment.max()) + 1
    position = canvas.place
    far = int(position.max()) + 1
    first = torch.full((len(answer), segments), far, device=canvas.device)
    place = torch.where(answer, position, far)
    first.scatter_reduce_(1, canvas.segment, place, reduce="amin")
    return (position - first.gather(1, canvas.segment)).clamp(min=0)


def before(canvas: Canvas, rows: Tensor, cells: Tensor) -> Tensor:
    """(K,) the columns whose hidden states score the cells (rows, cells) of a shifted model.

    It is the column on the left but for two cells of packed rows. The first cell of an answer's
    second copy follows the prompt, as the first copy's does; and the first cell of a noisy block
    follows the clean twin of the cell before it, since decoding has decided the earlier blocks.
    """
    left = (cells - 1).clamp(min=0)

    def same(numbers: Tensor) -> Tensor:
        return numbers[rows, left] == numbers[rows, cells]

    place, copy, segment = canvas.place, canvas.copy, canvas.segment
    follows = place[rows, left] == place[rows, cells] - 1
    follows &= (segment[rows, left] == 0) | same(segment)
    follows &= (copy[rows, left] == 0) | (same(copy) & same(canvas.block))
    far = (~follows).nonzero()[:, 0]
    row, cell = rows[far], cells[far]
    own = (segment[row] == segment[row, cell][:, None]) | (segment[row] == 0)
    clean = own & canvas.valid[row] & (copy[row] == 0)
    clean &= place[row] == place[row, cell][:, None] - 1
    found = clean.any(1)
    return left.index_copy(0, far[found], clean[found].long().argmax(1))


def turn_numbers(ids: Tensor, header: int, end: int, assistant: int) -> Tensor:
    """(B, L) long: the turn of a dialogue that each cell belongs to, from 0.

    A message opens with the id `header` and the id of its role, and closes with `end`; a turn ends
    with the assistant's message, and the next message's header opens a new one, so padding stays in
    the last turn. As the `block` of the block layout these numbers let a turn see itself and the
    earlier ones (LLaDA-V's dialogue mask).
    """
    numbers = []
    for row in ids.tolist():
        turn, speaker, over = 0, None, False
        for i, token in enumerate(row):
            if token == header:
                turn, over = turn + over, False
                speaker = row[i + 1] if i + 1 < len(row) else None
            over = over or (token == end and speaker == assistant)
            numbers.append(turn)
    return torch.tensor(numbers).view(ids.shape)
