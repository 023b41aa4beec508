"""Cells whose distribution has come to rest (KLASS)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.choose import ACCEPTS, Dynamic
from mmdiff.decoding.draws import Draws
from mmdiff.decoding.propose import spread
from mmdiff.decoding.settings import Decoding, whole
from mmdiff.decoding.stop import Seen
from mmdiff.errors import SettingError


@ACCEPTS.register("klass")
class Calm(Dynamic):
    """Every cell with probability above `above` whose KL(now || step before) was below `kl` in the
    last `history` steps; where there is none, the best cells of the schedule (arXiv:2511.05664).

    A cell is watched from the first step of its block on.
    """

    options: ClassVar[dict[str, float]] = {"above": 0.9, "kl": 0.01, "history": 2}

    def __init__(
        self,
        settings: Decoding,
        canvas: Canvas,
        above: float = 0.9,
        kl: float = 0.01,
        history: float = 2,
    ) -> None:
        super().__init__(settings, canvas)
        self.above, self.kl = above, kl
        if not (0 <= above <= 1 and kl >= 0):
            raise SettingError("accept=klass: above must lie in [0, 1] and kl be 0 or more")
        self.history = whole("accept=klass: history", history)
        self.calm = torch.zeros_like(canvas.ids)  # steps in a row with a small divergence
        self.place = torch.full_like(canvas.ids, -1)  # of each cell in `before`
        self.before: Tensor | None = None  # (K, V) log p of the last step

    def see(self, seen: Seen) -> None:
        """Compare each cell with what it was in the step before."""
        now = seen.proposal.logits.float().log_softmax(1)
        place = self.place[seen.rows][seen.need]
        moved = torch.full_like(now[:, 0], float("inf"))
        if self.before is not None:
            known = (place >= 0).nonzero()[:, 0]
            moved[known] = divergence(now[known], self.before[place[known]])
        rest = spread(moved, seen.need, float("inf")) < self.kl
        self.calm[seen.rows] = torch.where(rest, self.calm[seen.rows] + 1, 0)
        self.place.fill_(-1)
        numbers = torch.arange(len(now), device=now.device)
        self.place[seen.rows] = spread(numbers, seen.need, -1)
        self.before = now

    def __call__(
        self, score: Tensor, probability: Tensor, canvas: Canvas, rows: Tensor, draws: Draws
    ) -> Tensor:
        counted = torch.tensor(self.counts(canvas, rows), device=score.device)
        best = draws.choose(score, counted, self.settings.order_temperature)
        sure = (score > float("-inf")) & (probability > self.above)
        sure &= self.calm[rows] >= self.history
        return torch.where(sure.any(1, keepdim=True), sure, best)


def divergence(now: Tensor, before: Tensor) -> Tensor:
    """(K,) KL(now || before) from log p (K, V); ids that are impossible now count nothing."""
    p = now.exp()
    return (p * torch.where(p > 0, now - before, 0)).sum(1)
