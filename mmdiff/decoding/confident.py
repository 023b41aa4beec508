"""Confident decoding (Dimple, arXiv:2505.16990): sure cells at once, else what a schedule gives."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.choose import ACCEPTS, draw, masks_by_block
from mmdiff.decoding.draws import Draws
from mmdiff.decoding.settings import Decoding
from mmdiff.diffusion.schedule import ratio_share


@ACCEPTS.register("confident")
class Confident:
    """Every cell more probable than `threshold`; a row without one, or in its last step, takes the
    best n of `ratio_share`."""

    def __init__(self, settings: Decoding, canvas: Canvas) -> None:
        self.settings = settings
        self.masks = masks_by_block(canvas)
        self.taken: Counter[tuple[int, int]] = Counter()  # steps by row and block

    def __call__(
        self, score: Tensor, probability: Tensor, canvas: Canvas, rows: Tensor, draws: Draws
    ) -> Tensor:
        is_open = score > float("-inf")
        sure = is_open & (probability > self.settings.threshold)
        keys = zip(rows.tolist(), canvas.open_block()[:, 0].tolist(), strict=True)
        left = is_open.sum(1).tolist()
        shares = [self.share(*key, n) for key, n in zip(keys, left, strict=True)]
        last = torch.tensor([chance == 1 for _, chance in shares], device=score.device)
        found = sure.any(1) & ~last
        scheduled = self.scheduled(score, probability, shares, draws)
        return torch.where(found[:, None], sure, scheduled)

    def share(self, row: int, block: int, left: int) -> tuple[int, float]:
        """Cells and chance of the row's next step in its open block."""
        settings, total, step = self.settings, self.masks[row][block], self.taken[row, block]
        self.taken[row, block] += 1
        steps = settings.steps_of_block(block - 1) or total
        return ratio_share(left, total, step, steps, settings.eps)

    def scheduled(
        self, score: Tensor, probability: Tensor, shares: list[tuple[int, float]], draws: Draws
    ) -> Tensor:
        """(b, L) bool: what rows without a sure cell take."""
        counts = torch.tensor([cells for cells, _ in shares], device=score.device)
        return draw(score, probability, counts, self.settings, draws)


@ACCEPTS.register("confident_origin")
class ConfidentOrigin(Confident):
    """As `confident`, but a row without a sure cell takes each by its own draw, with the chance of
    `ratio_share` (Dimple's alg="origin-ratio")."""

    def scheduled(
        self, score: Tensor, probability: Tensor, shares: list[tuple[int, float]], draws: Draws
    ) -> Tensor:
        is_open = score > float("-inf")
        chance = torch.tensor([c for _, c in shares], device=score.device)
        accept = torch.zeros_like(is_open)
        accept[is_open] = (
            draws.within(is_open).uniform() < chance[:, None].expand_as(is_open)[is_open]
        )
        return accept
