"""The max-logit cache: cells that the model is sure about are not computed again."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.cache import CACHES
from mmdiff.decoding.settings import PLAIN, Decoding, between, whole
from mmdiff.decoding.windows import Windows
from mmdiff.errors import SettingError

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel


ROUNDING = 1e-5  # relative


@CACHES.register("max_logit")
class MaxLogit(Windows):
    """Keys, values and outputs of all columns; a step feeds only those whose best logit, among the
    codes that are generated, is at most the row's quantile at 1 - `ratio`. Everything is computed
    in the first int(steps * `warmup`) steps, the next one, and every `refresh`-th after it
    (Lumina-DiMOO, arXiv:2510.06308 §3.3, `generate_image`). An approximation."""

    options: ClassVar[dict[str, float]] = {"ratio": 0.9, "warmup": 0.3, "refresh": 5}

    def __init__(
        self,
        model: MMDiffModel,
        canvas: Canvas,
        settings: Decoding = PLAIN,
        ratio: float = 0.9,
        warmup: float = 0.3,
        refresh: float = 5,
    ) -> None:
        between("cache=max_logit: ratio", ratio, 0, 1)
        between("cache=max_logit: warmup", warmup, 0, 1)
        if model.config.shift:
            raise SettingError("cache=max_logit is not made for a model with shifted logits")
        super().__init__(model, canvas)
        self.ratio, self.refresh = ratio, whole("cache=max_logit: refresh", refresh)
        self.warm = int((settings.steps or settings.max_new_tokens) * warmup)
        first, count = settings.codes or (0, model.rows)
        self.codes = slice(first, first + count)
        self.hidden = self.prompt.new_zeros(*canvas.shape, self.prompt.shape[2])
        self.best = self.prompt.new_zeros(canvas.shape)
        self.step = 0

    def score(self, canvas: Canvas, need: Tensor) -> Tensor:
        for rows, columns, made in self.compute(canvas, self.unsure(canvas)):
            self.hidden[rows[:, None], columns] = made
            self.best[rows[:, None], columns] = self.model.head(made, self.codes).amax(-1)
        self.step += 1
        return self.model.head(self.model.pick(self.hidden, need))

    def unsure(self, canvas: Canvas) -> Tensor:
        """(b, L) bool: cells to compute."""
        after = self.step - self.warm
        if after <= 0 or after % self.refresh == 0:
            return torch.ones_like(canvas.valid)
        best = torch.where(canvas.valid, self.best.float(), torch.nan)
        border = best.nanquantile(1 - self.ratio, dim=1, keepdim=True)
        # Cells that tie but for rounding, as in a row of masks, are all computed.
        return best <= border + ROUNDING * border.abs()

    def select(self, rows: Tensor) -> None:
        super().select(rows)
        self.hidden, self.best = self.hidden[rows], self.best[rows]
