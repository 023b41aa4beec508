"""The max-logit cache: cells that the model is sure about are not computed again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mmdiff.backbone import KeyValueCache, run_decoder
from mmdiff.canvas import Canvas
from mmdiff.decoding.cache import CACHES
from mmdiff.decoding.settings import Decoding
from mmdiff.diffusion.attention import Cells, additive, allowed
from mmdiff.errors import SettingError

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel


ROUNDING = 1e-5  # relative


class ScatterCache(KeyValueCache):
    """Keys and values of every column, of which a step writes the given ones, (B, Q)."""

    columns: Tensor

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        if layer not in self.keys:
            return super().update(keys, values, layer)
        index = self.columns[:, None, :, None]
        self.keys[layer].scatter_(2, index.expand_as(keys), keys)
        self.values[layer].scatter_(2, index.expand_as(values), values)
        return self.keys[layer], self.values[layer]


@CACHES.register("max_logit")
class MaxLogitCache:
    """Keys, values and outputs of all columns; a step feeds only those whose best logit, among the
    codes that are generated, is at most the row's quantile at 1 - `ratio`. Everything is computed
    in the first int(steps * `warmup`) steps, the next one, and every `refresh`-th after it
    (Lumina-DiMOO, arXiv:2510.06308 §3.3, `generate_image`). An approximation."""

    calls = 1
    start = 0
    options: ClassVar[dict[str, float]] = {"ratio": 0.9, "warmup": 0.3, "refresh": 5}

    def __init__(
        self,
        model: MMDiffModel,
        canvas: Canvas,
        settings: Decoding,
        ratio: float,
        warmup: float,
        refresh: float,
    ) -> None:
        if not (0 <= ratio <= 1 and 0 <= warmup <= 1 and refresh >= 1):
            raise SettingError("cache=max_logit: ratio, warmup must lie in [0, 1], refresh above 0")
        if model.config.shift:
            raise SettingError("cache=max_logit is not made for a model with shifted logits")
        self.model, self.ratio, self.refresh = model, ratio, int(refresh)
        self.warm = int((settings.steps or settings.max_new_tokens) * warmup)
        first, count = settings.codes or (0, model.rows)
        self.codes = slice(first, first + count)
        self.prompt = model.embed(canvas)[:, : canvas.prompt_length]
        self.store = ScatterCache(canvas.ids.shape[1])
        self.hidden = self.prompt.new_zeros(*canvas.shape, self.prompt.shape[2])
        self.best = self.prompt.new_zeros(canvas.shape)
        self.step = 0

    def score(self, canvas: Canvas, need: Tensor) -> Tensor:
        columns = self.columns(canvas)
        self.step += 1
        answer = self.model.get_input_embeddings()(canvas.ids[:, canvas.prompt_length :])
        embeds = pick(torch.cat([self.prompt, answer], dim=1), columns)
        hidden = self.compute(canvas, embeds, columns)
        self.hidden.scatter_(1, columns[..., None].expand_as(hidden), hidden)
        self.best.scatter_(1, columns, self.model.head(hidden, self.codes).amax(-1))
        return self.model.head(self.model.pick(self.hidden, need))

    def columns(self, canvas: Canvas) -> Tensor:
        """(B, Q) columns to compute. A row with fewer than others repeats its first: the same
        result is written twice."""
        after = self.step - self.warm
        if after <= 0 or after % self.refresh == 0:
            return torch.arange(canvas.shape[1], device=canvas.device).expand(canvas.shape)
        best = torch.where(canvas.valid, self.best.float(), torch.nan)
        border = best.nanquantile(1 - self.ratio, dim=1, keepdim=True)
        # Cells that tie but for rounding, as in a row of masks, are all computed.
        unsure = best <= border + ROUNDING * border.abs()
        order = unsure.long().argsort(dim=1, descending=True, stable=True)
        count = unsure.sum(1, keepdim=True)
        order = order[:, : int(count.max())]
        given = torch.arange(order.shape[1], device=order.device) < count
        return torch.where(given, order, order[:, :1])

    def compute(self, canvas: Canvas, embeds: Tensor, columns: Tensor) -> Tensor:
        """(B, Q, D) hidden states of these columns, which see all others."""
        cells = Cells.of(canvas)
        see = allowed(cells, cells, canvas.layout or self.model.config.attention_layout)
        mask = additive(pick(see, columns), embeds.dtype)
        self.store.columns = columns
        position = canvas.position.gather(1, columns)
        return run_decoder(self.model.backbone, embeds, position, mask, self.store)

    def select(self, rows: Tensor) -> None:
        self.prompt, self.hidden, self.best = self.prompt[rows], self.hidden[rows], self.best[rows]
        self.store.select(rows)


def pick(values: Tensor, columns: Tensor) -> Tensor:
    """(B, Q, X) the given columns (B, Q) of values (B, L, X)."""
    return values.gather(1, columns[..., None].expand(-1, -1, values.shape[2]))
