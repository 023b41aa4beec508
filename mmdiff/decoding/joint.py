"""Dimple's `diffusion_generate` (`compat`): a step decides over the open cells of all rows at once.

`accept=confident` and `confident_origin` are its pipeline "dim" (threshold 1: without one),
`accept=schedule` and `origin` its pipeline "dream". See `mmdiff.decoding.draws`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.draws import DRAWS, Draws
from mmdiff.decoding.published import Dream
from mmdiff.decoding.settings import Decoding
from mmdiff.diffusion.schedule import ratio_share


class Timed:
    """int(left (1 - s / t)) cells between the fixed times t > s of a step, the rest in the last."""

    by_chance = False

    def __init__(self, settings: Decoding, canvas: Canvas) -> None:
        self.settings = settings
        self.total = int(canvas.masked.sum())
        self.steps = settings.steps or int(canvas.masked.sum(1).max())
        self.step = -1

    def __call__(
        self, score: Tensor, probability: Tensor, canvas: Canvas, rows: Tensor, draws: Draws
    ) -> Tensor:
        self.step += 1
        is_open = score > float("-inf")
        own = self.settings.order in ("margin", "entropy")
        return self.decide(is_open, score if own else probability)

    def decide(self, is_open: Tensor, confidence: Tensor) -> Tensor:
        """(b, L) bool of the open cells and their published confidences (b, L)."""
        left = int(is_open.sum())
        cells, chance = self.share(left)
        if self.settings.order == "left_to_right" and not self.by_chance:
            return is_open & (is_open.cumsum(1) == 1)
        taken = torch.zeros(left, dtype=torch.bool, device=is_open.device)
        if self.by_chance:
            taken = torch.rand(left, device=is_open.device) < chance
        elif self.settings.order == "random":
            taken[torch.randperm(left)[:cells]] = True
        elif cells and self.settings.order_temperature:
            weight = (confidence[is_open] / self.settings.order_temperature).softmax(0)
            taken[torch.multinomial(weight, cells)] = True
        else:
            taken[confidence[is_open].topk(cells).indices] = True
        return torch.zeros_like(is_open).masked_scatter(is_open, taken)

    def share(self, left: int) -> tuple[int, float]:
        """Cells, and the chance per cell, of this step."""
        time = torch.linspace(1, self.settings.eps, self.steps + 1)
        if self.step >= self.steps - 1:
            return left, 1.0
        chance = 1 - time[self.step + 1] / time[self.step]
        return int(left * chance), float(chance)


class Confident(Timed):
    """Exactly the cells whose confidence, a margin or negative entropy where these give the order,
    exceeds the threshold; all in the last step. Where the whole batch has none, `ratio_share`."""

    def decide(self, is_open: Tensor, confidence: Tensor) -> Tensor:
        if self.settings.threshold < 1:
            sure = is_open & (confidence > self.settings.threshold)
            sure = is_open if self.step == self.steps - 1 else sure
            if bool(sure.any()):
                return sure
        return super().decide(is_open, confidence)

    def share(self, left: int) -> tuple[int, float]:
        return ratio_share(left, self.total, self.step, self.steps, self.settings.eps)


class ConfidentOrigin(Confident):
    by_chance = True


@DRAWS.register("dimple_filtered")
class Filtered(Dream):
    """With use_original_confidence=False, as the pipeline "dream" always has it: confidence of the
    filtered, tempered distribution."""

    accepts: ClassVar = {
        "schedule": Timed,
        "confident": Confident,
        "confident_origin": ConfidentOrigin,
    }

    def tokens(self, logits: Tensor, settings: Decoding) -> tuple[Tensor, Tensor]:
        if settings.accept != "origin":  # the rules draw for themselves, and only where they must
            self.drawn = torch.zeros(len(self.cell), device=self.cell.device)
        return super().tokens(logits, settings)


@DRAWS.register("dimple")
class Original(Filtered):
    """Confidence of the model's own distribution (use_original_confidence=True, the default)."""

    def tokens(self, logits: Tensor, settings: Decoding) -> tuple[Tensor, Tensor]:
        return super().tokens(logits, settings)[0], logits
