"""Guidance: the model's answer with its condition against its answer without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.cache import Cache

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel


class Guided:
    """Classifier-free guidance: free + (1 + scale) (conditioned - free).

    `free` sees mask ids in place of the whole prompt, pictures included (LLaDA `generate.py`;
    LLaDA-V replaces the prompt's embeddings, which is the same), and stands as a call without
    pictures does; or, given a canvas with the same
    answer columns, the prompt of that one, which may be of another length (MMaDA, Lumina-DiMOO).
    """

    calls = 2  # of the backbone per step
    prompt_only = False

    def __init__(
        self,
        cache: Callable[[MMDiffModel, Canvas], Cache],
        model: MMDiffModel,
        canvas: Canvas,
        scale: float,
        free: Canvas | None = None,
    ) -> None:
        self.scale = scale
        self.blank = without_prompt(canvas, model.config.mask_token_id) if free is None else free
        self.conditioned = cache(model, canvas)
        self.free = cache(model, self.blank)
        self.start = self.conditioned.start

    @property
    def foreseen(self) -> bool:
        return self.conditioned.foreseen

    @property
    def total(self) -> int:
        return self.conditioned.total + self.free.total

    def score(self, canvas: Canvas, need: Tensor) -> Tensor:
        blank, behind = self.blank, slice(canvas.prompt_length, None)
        width = blank.prompt_length
        given = torch.where(canvas.writable[:, behind], canvas.ids[:, behind], blank.ids[:, width:])
        nothing = torch.zeros_like(blank.masked[:, :width])
        masked, wanted = (torch.cat([nothing, x[:, behind]], dim=1) for x in (canvas.masked, need))
        now = replace(
            blank,
            ids=torch.cat([blank.ids[:, :width], given], dim=1),
            masked=masked,
            block=torch.cat([blank.block[:, :width], canvas.block[:, behind]], dim=1),
        )
        free = self.free.score(now, wanted)
        return free + (1 + self.scale) * (self.conditioned.score(canvas, need) - free)

    def select(self, rows: Tensor) -> None:
        self.blank = self.blank.select(rows)
        self.conditioned.select(rows)
        self.free.select(rows)


def without_prompt(canvas: Canvas, mask_id: int) -> Canvas:
    """The canvas with mask ids for its prompt, and nothing that tells of pictures: neither apart
    from the text, nor counted on axes of their own."""
    ids = canvas.ids.clone()
    ids[:, : canvas.prompt_length] = mask_id
    number = (canvas.valid.long().cumsum(1) - 1).clamp(min=0)
    position = number.expand_as(canvas.position) if canvas.position.dim() == 3 else canvas.position
    segment = torch.zeros_like(canvas.segment)
    return replace(canvas, ids=ids, features=None, position=position, segment=segment)
