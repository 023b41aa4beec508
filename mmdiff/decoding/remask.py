"""What happens to cells that were decided already: they may be seen and written again."""

from __future__ import annotations

import math
from collections import Counter
from typing import Protocol

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.settings import Decoding, with_options
from mmdiff.registry import Registry


class Remask(Protocol):
    def __init__(self, settings: Decoding, options: dict[str, float]) -> None: ...

    def wants(self, canvas: Canvas, rows: Tensor) -> Tensor:
        """(b, L) bool: decided cells whose logits the rule needs in this step; called once a step.
        `rows` (b,) are the open rows' numbers in the whole batch."""

    def revise(self, canvas: Canvas, wanted: Tensor, tokens: Tensor, probability: Tensor) -> None:
        """Change cells of the canvas; `tokens` and `probability` (b, L) are this step's."""


REMASKS: Registry[type[Remask]] = Registry("remask rule")


@REMASKS.register("none")
class Keep:
    """A decided cell stays."""

    def __init__(self, settings: Decoding, options: dict[str, float]) -> None:
        with_options("remask=none", options, {})

    def wants(self, canvas: Canvas, rows: Tensor) -> Tensor:
        return torch.zeros_like(canvas.masked)

    def revise(self, canvas: Canvas, wanted: Tensor, tokens: Tensor, probability: Tensor) -> None:
        pass


@REMASKS.register("revise")
class Revise:
    """Decided cells of the open block take the model's new choice in every step (ReDiff,
    `generate_with_embeds`): all of them, or the fraction `top` of highest probability, in the last
    fraction `start` of a block's steps."""

    def __init__(self, settings: Decoding, options: dict[str, float]) -> None:
        chosen = with_options("remask=revise", options, {"top": 1.0, "start": 1.0})
        self.top, self.start = chosen["top"], chosen["start"]
        self.settings = settings
        self.taken: Counter[tuple[int, int]] = Counter()  # steps by row and block

    def wants(self, canvas: Canvas, rows: Tensor) -> Tensor:
        block = canvas.open_block()
        ready = []
        for key in zip(rows.tolist(), block[:, 0].tolist(), strict=True):
            steps = self.settings.steps_of_block(key[1] - 1) or int((canvas.block == key[1]).sum())
            ready.append(self.taken[key] >= steps - math.ceil(steps * self.start))
            self.taken[key] += 1
        open_rows = torch.tensor(ready, device=canvas.device)[:, None]
        return canvas.writable & ~canvas.masked & (canvas.block == block) & open_rows

    def revise(self, canvas: Canvas, wanted: Tensor, tokens: Tensor, probability: Tensor) -> None:
        if self.top < 1:
            count = (wanted.sum(1) * self.top).long()
            score = torch.where(wanted, probability, -math.inf)
            order = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            wanted = wanted & (order < count[:, None])
        canvas.ids = torch.where(wanted, tokens, canvas.ids)
