"""When a row is finished before all its cells were decided one by one."""

from __future__ import annotations

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.registry import Registry

STOPS: Registry = Registry("stop")


@STOPS.register("none")
def never(canvas: Canvas, end_id: int | None) -> None:
    """Every cell is decided by the model."""


@STOPS.register("end_of_text")
def end_of_text(canvas: Canvas, end_id: int | None) -> None:
    """Masked cells behind the first decided end-of-text become end-of-text too."""
    if end_id is None:
        return
    decided = canvas.writable & ~canvas.masked & (canvas.ids == end_id)
    behind = decided.long().cumsum(1) > 0
    fill = canvas.masked & behind
    canvas.ids = torch.where(fill, end_id, canvas.ids)
    canvas.masked = canvas.masked & ~fill


def answer_length(ids: Tensor, end_id: int | None) -> Tensor:
    """(B,) cells of answers (B, N) up to and including the first end-of-text."""
    rows, cells = ids.shape
    if end_id is None:
        return torch.full((rows,), cells, device=ids.device)
    ended = (ids == end_id).long().cumsum(1) > 0
    return (cells - ended.sum(1) + ended.any(1)).long()
