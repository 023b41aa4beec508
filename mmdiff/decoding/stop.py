"""When a row is finished before all its cells were decided one by one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.registry import Registry

STOPS: Registry = Registry("stop")


@STOPS.register("none")
def never(canvas: Canvas, end_ids: Tensor) -> None:
    """Every cell is decided by the model."""


@STOPS.register("end_of_text")
def end_of_text(canvas: Canvas, end_ids: Tensor) -> None:
    """Masked cells behind the first decided end-of-text, or other id (n,) that ends a text, become
    the first of these ids."""
    fill = _behind(canvas, end_ids)
    if len(end_ids):
        canvas.ids = torch.where(fill, end_ids[0], canvas.ids)
        canvas.masked = canvas.masked & ~fill


@STOPS.register("cut")
def cut(canvas: Canvas, end_ids: Tensor) -> None:
    """Masked cells behind the first decided end keep their mask ids and are never decided: the
    cells before are filled as if the answer went on (LLaDA-V `generate_with_embeds`)."""
    canvas.masked = canvas.masked & ~_behind(canvas, end_ids)


@STOPS.register("block_end")
def block_end(canvas: Canvas, end_ids: Tensor) -> None:
    """A row whose last decided block ends with an id that ends a text is finished: the cells of
    later blocks keep their mask ids."""
    canvas.masked = canvas.masked & ~_ended_block(canvas, end_ids)


@STOPS.register("batch_block_end")
def batch_block_end(canvas: Canvas, end_ids: Tensor) -> None:
    """As block_end, but only when every row of the batch ends there (MMaDA `mmu_generate_fast`)."""
    canvas.masked = canvas.masked & ~_ended_block(canvas, end_ids).all()


def _ended_block(canvas: Canvas, end_ids: Tensor) -> Tensor:
    """(B, 1) bool: the last wholly decided answer block ends with one of these ids (n,)."""
    done = canvas.open_block() - 1
    last = (canvas.block == done).long().cumsum(1).argmax(1, keepdim=True)
    return (done > 0) & torch.isin(canvas.ids.gather(1, last), end_ids)


def _behind(canvas: Canvas, end_ids: Tensor) -> Tensor:
    """(B, L) bool: masked cells behind a decided one of these ids (n,)."""
    decided = canvas.writable & ~canvas.masked & torch.isin(canvas.ids, end_ids)
    return canvas.masked & (decided.long().cumsum(1) > 0)


def answer_length(ids: Tensor, end_ids: Sequence[int]) -> Tensor:
    """(B,) cells of answers (B, N) up to and including the first of the ids that end a text."""
    cells = ids.shape[1]
    ends = torch.tensor(end_ids, dtype=torch.long, device=ids.device)
    ended = torch.isin(ids, ends).long().cumsum(1) > 0
    return (cells - ended.sum(1) + ended.any(1)).long()
