"""The max-logit cache: cells that the model is sure about are not computed again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.cache import CACHES, NO_OPTIONS
from mmdiff.decoding.settings import Decoding
from mmdiff.decoding.windows import Windows
from mmdiff.errors import SettingError

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel

ROUNDING = 1e-5  # relative


@CACHES.register("max_logit")
class MaxLogit(Windows):
    """Keys, values and outputs of all cells are kept; a step feeds only cells whose best logit,
    among the codes that are generated, is at most the row's quantile at 1 - `ratio`. Everything is
    fed in the first int(steps * `warmup`) steps, the next one, and every `refresh`-th after it
    (Lumina-DiMOO, arXiv:2510.06308 §3.3, `generate_image`). An approximation."""

    name = "max_logit"
    known: Mapping[str, float] = {"ratio": 0.9, "warmup": 0.3, "refresh": 5}
    needs_settings = True

    def __init__(
        self,
        model: MMDiffModel,
        canvas: Canvas,
        options: Mapping[str, Any] = NO_OPTIONS,
        *,
        settings: Decoding,
    ) -> None:
        super().__init__(model, canvas, options)
        ratio, warmup, refresh = (self.options[name] for name in ("ratio", "warmup", "refresh"))
        if not (0 <= ratio <= 1 and 0 <= warmup <= 1 and refresh >= 1):
            raise SettingError("cache=max_logit: ratio, warmup must lie in [0, 1], refresh above 0")
        if model.config.shift:
            raise SettingError("cache=max_logit is not made for a model with shifted logits")
        self.warm = int((settings.steps or settings.max_new_tokens) * warmup)
        first, count = settings.codes or (0, model.rows)
        self.codes = slice(first, first + count)
        self.hidden = self.prompt.new_zeros(*canvas.shape, self.prompt.shape[2])
        self.best = self.prompt.new_zeros(canvas.shape)
        self.step = 0

    def fed(self, canvas: Canvas, need: Tensor) -> Tensor:
        after, self.step = self.step - self.warm, self.step + 1
        if after <= 0 or after % int(self.options["refresh"]) == 0:
            return torch.ones_like(need)
        best = torch.where(canvas.valid, self.best.float(), torch.nan)
        border = best.nanquantile(1 - self.options["ratio"], dim=1, keepdim=True)
        # Cells that tie but for rounding, as in a row of masks, are all computed.
        return best <= border + ROUNDING * border.abs()

    def score(self, canvas: Canvas, need: Tensor) -> Tensor:
        fed = self.fed(canvas, need)
        counts = fed.sum(1)
        for count in counts.unique().tolist():
            rows = (counts == count).nonzero()[:, 0]
            columns = fed[rows].nonzero()[:, 1].view(len(rows), count)
            self.total += 1
            hidden = self._hidden(canvas, rows, columns)
            self.hidden[rows[:, None], columns] = hidden
            self.best[rows[:, None], columns] = self.model.head(hidden, self.codes).amax(-1)
        return self.model.head(self.hidden[need])

    def select(self, rows: Tensor) -> None:
        self.hidden, self.best = self.hidden[rows], self.best[rows]
        super().select(rows)
