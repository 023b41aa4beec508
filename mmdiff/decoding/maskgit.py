"""MaskGIT's rule for image codes: how many cells stay masked, and which."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.choose import ACCEPTS
from mmdiff.decoding.draws import Draws
from mmdiff.decoding.settings import Decoding
from mmdiff.diffusion.schedule import mask_ratio
from mmdiff.errors import SettingError


@ACCEPTS.register("maskgit")
class MaskGIT:
    """After step k of T, floor(n mask_ratio(k / T)) of a row's n cells stay masked, at least one
    less than before and none after the last: those of lowest log p + heat * Gumbel noise.
    `schedule` names the ratio; the heat falls from `order_temperature` to 0, as 1 - k / T (MaskGIT,
    arXiv:2202.04200 §3.2).
    """

    last = 0  # cells still masked after the last step

    def __init__(self, settings: Decoding, canvas: Canvas) -> None:
        if settings.blocks > 1:
            raise SettingError("accept=maskgit has one block; leave block_length out")
        steps = settings.steps or settings.max_new_tokens
        done = torch.tensor([k / steps for k in range(1, steps + 1)])  # float32, as published
        self.ratio = mask_ratio(done, settings.schedule)
        self.heat = self.heats(settings.order_temperature, steps)
        self.confidence = settings.order == "confidence"
        self.masks = canvas.masked.sum(1)
        self.step = 0

    def heats(self, first: float, steps: int) -> list[float]:
        """The heat of every step."""
        return [first * (1 - k / steps) for k in range(1, steps + 1)]

    def __call__(
        self, score: Tensor, probability: Tensor, canvas: Canvas, rows: Tensor, draws: Draws
    ) -> Tensor:
        left = (score > float("-inf")).sum(1)
        goal = (self.masks[rows] * self.ratio[self.step].to(score.device)).floor().long()
        keep = torch.minimum(left - 1, goal.clamp(min=1))
        if self.step == len(self.ratio) - 1:
            keep = torch.zeros_like(keep)
        keep = keep.clamp(min=self.last)
        if self.confidence:
            score = F.logsigmoid(score)  # log-odds -> log p
        accept = draws.choose(score, left - keep, self.heat[self.step])
        self.step += 1
        return accept
