"""Saber: take what is surer than all that was taken so far, give back what lost most confidence.

The two halves are rules of their own, `accept=saber` and `remask=drop` (arXiv:2510.18165,
zhaoyMa/Saber `decoding.py`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.choose import ACCEPTS
from mmdiff.decoding.draws import Draws, top
from mmdiff.decoding.remask import REMASKS, reopen
from mmdiff.decoding.settings import Decoding, whole, with_options

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel

NEVER = -math.inf


@ACCEPTS.register("saber")
class Surer:
    """Every cell more probable than the mean of all cells accepted so far had when they were, those
    that were given back since included; the `n` best where these are fewer than `n`."""

    options: ClassVar[dict[str, float]] = {"n": 2}

    def __init__(self, settings: Decoding, canvas: Canvas, n: float = 2) -> None:
        self.n = whole("accept=saber: n", n)
        self.kept = torch.full(canvas.shape, NEVER, device=canvas.device)

    def __call__(
        self, score: Tensor, probability: Tensor, canvas: Canvas, rows: Tensor, draws: Draws
    ) -> Tensor:
        kept = self.kept[rows]
        counted = kept > NEVER
        mean = kept.masked_fill(~counted, 0).sum(1) / counted.sum(1)  # NaN: nothing is surer
        sure = (score > NEVER) & (probability > mean[:, None])
        few = sure.sum(1) < self.n
        accept = torch.where(few[:, None], self.best(score), sure)
        known = accept & (canvas.block <= canvas.open_block())
        self.kept[rows] = torch.where(known, probability.to(kept), kept)
        return accept & canvas.writable

    def best(self, score: Tensor) -> Tensor:
        """(b, L) bool: the n best open cells."""
        return top(score, torch.full_like(score[:, 0], self.n))


class PublishedSurer(Surer):
    """As published: where fewer than n cells are open, closed ones complete the n, whichever topk
    names. Decided ones are written over, later ones decided early, and the prompt's count in the
    mean."""

    def best(self, score: Tensor) -> Tensor:
        named = score.topk(min(self.n, score.shape[1])).indices
        return torch.zeros_like(score, dtype=torch.bool).scatter_(1, named, True)


@REMASKS.register("drop")
class Drop:
    """Of the decided cells, those whose probability fell most since the step before are masked
    again: max(`least`, ceil(f / `share`)) after a step that accepted f, at most f - 1, none where
    the block is full. Probability is that of the model's choice of now.

    Cells of finished blocks join the open one, but in a block-causal checkpoint, where no cell sees
    a later block, they stay. A cell's probability before its block was opened counts as 0 in the
    first block; in later ones a cell is given back from its second step on.
    """

    def __init__(
        self, settings: Decoding, options: dict[str, Any], model: MMDiffModel, canvas: Canvas
    ) -> None:
        chosen = with_options("remask=drop", options, {"least": 1, "share": 8})
        self.least = whole("remask=drop: least", chosen["least"], 0)
        self.share = whole("remask=drop: share", chosen["share"])
        self.mask_id = model.config.mask_token_id
        layout = canvas.layout or model.config.attention_layout
        self.own_block = layout in ("block", "causal_block")
        first = torch.where(canvas.block <= canvas.open_block(), 0.0, NEVER)
        self.last = first.expand(canvas.shape).clone()

    def wants(self, canvas: Canvas, rows: Tensor) -> Tensor:
        self.rows, self.before, self.block = rows, canvas.masked, canvas.open_block()
        same = canvas.block == self.block
        reached = same if self.own_block else canvas.block <= self.block
        self.reached = canvas.writable & reached
        return self.reached & ~canvas.masked

    def revise(self, canvas: Canvas, wanted: Tensor, tokens: Tensor, probability: Tensor) -> None:
        now = torch.where(self.reached, probability.to(self.last), NEVER)
        fall = self.last[self.rows] - now  # -inf where there was nothing before
        self.last[self.rows] = now
        accepted = (self.before & ~canvas.masked).sum(1)
        count = ((accepted + self.share - 1) // self.share).clamp(min=self.least)
        full = ~(canvas.masked & (canvas.block == self.block)).any(1)
        count = torch.minimum(count, accepted - 1).masked_fill(full, 0)
        able = self.reached & ~canvas.masked
        reopen(canvas, top(fall.masked_fill(~able, NEVER), count), self.block, self.mask_id)
