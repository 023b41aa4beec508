"""Guidance: the model's answer with its condition against its answer without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.cache import Cache

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel


class Guided:
    """Classifier-free guidance: free + (1 + scale) (conditioned - free).

    `free` sees mask ids in place of the whole prompt, pictures included (LLaDA `generate.py`;
    LLaDA-V replaces the prompt's embeddings, which is the same).
    """

    calls = 2  # of the backbone per step

    def __init__(
        self, cache: Callable[..., Cache], model: MMDiffModel, canvas: Canvas, scale: float
    ):
        self.scale = scale
        self.mask_id = model.config.mask_token_id
        self.conditioned = cache(model, canvas)
        self.free = cache(model, self.without_prompt(canvas))
        self.start = self.conditioned.start

    def without_prompt(self, canvas: Canvas) -> Canvas:
        ids = canvas.ids.clone()
        ids[:, : canvas.prompt_length] = self.mask_id
        return replace(canvas, ids=ids, features=None)

    @property
    def total(self) -> int:
        return self.conditioned.total + self.free.total

    def score(self, canvas: Canvas, need: Tensor) -> Tensor:
        free = self.free.score(self.without_prompt(canvas), need)
        return free + (1 + self.scale) * (self.conditioned.score(canvas, need) - free)

    def select(self, rows: Tensor) -> None:
        self.conditioned.select(rows)
        self.free.select(rows)
