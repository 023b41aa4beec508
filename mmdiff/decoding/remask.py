"""What happens to cells that were decided already: they may be seen and written again."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.settings import Decoding, between, with_options
from mmdiff.registry import Registry

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel


class Remask(Protocol):
    """A rule that draws what is decided too has a method `accept`, called as an accept rule is."""

    def __init__(
        self, settings: Decoding, options: dict[str, Any], model: MMDiffModel, canvas: Canvas
    ) -> None: ...

    def wants(self, canvas: Canvas, rows: Tensor) -> Tensor:
        """(b, L) bool: decided cells whose logits the rule needs in this step; called once a step.
        `rows` (b,) are the open rows' numbers in the whole batch."""

    def revise(self, canvas: Canvas, wanted: Tensor, tokens: Tensor, probability: Tensor) -> None:
        """Change cells of the canvas; `tokens` and `probability` (b, L) are this step's."""


REMASKS: Registry[type[Remask]] = Registry(
    "remask rule", modules=("mmdiff.decoding.saber", "mmdiff.decoding.remdm")
)


@REMASKS.register("none")
class Keep:
    """A decided cell stays."""

    def __init__(
        self, settings: Decoding, options: dict[str, Any], model: MMDiffModel, canvas: Canvas
    ) -> None:
        with_options("remask=none", options, {})

    def wants(self, canvas: Canvas, rows: Tensor) -> Tensor:
        return torch.zeros_like(canvas.masked)

    def revise(self, canvas: Canvas, wanted: Tensor, tokens: Tensor, probability: Tensor) -> None:
        pass


@REMASKS.register("revise")
class Revise:
    """Decided cells of the open block take the model's new choice in every step (ReDiff,
    `generate_with_embeds`): all of them, or the fraction `top` of highest probability, in the last
    fraction `start` of a block's steps; only choices more probable than `above` (as LLaDA2.1 edits
    tokens)."""

    def __init__(
        self, settings: Decoding, options: dict[str, Any], model: MMDiffModel, canvas: Canvas
    ) -> None:
        chosen = with_options("remask=revise", options, {"top": 1.0, "start": 1.0, "above": 0.0})
        for name, value in chosen.items():
            between(f"remask=revise: {name}", value, 0, 1)
        self.top, self.start, self.above = (chosen[name] for name in ("top", "start", "above"))
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
        if self.above:
            wanted = wanted & (probability > self.above)
        canvas.ids = torch.where(wanted, tokens, canvas.ids)


def reopen(canvas: Canvas, cells: Tensor, block: Tensor, mask_id: int) -> None:
    """Mask decided `cells` (b, L) again; they are decided with the open `block` (b, 1)."""
    canvas.masked = canvas.masked | cells
    canvas.ids = torch.where(cells, mask_id, canvas.ids)
    canvas.block = torch.where(cells, block, canvas.block)
