"""Blocks whose sizes are chosen while the answer is written, from how sure the model is.

A row's open block is settled in its first step: that step scores the cells it may take, the size is
chosen, and only its cells may be decided. Later blocks are numbered behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.length import LENGTHS, Fixed
from mmdiff.decoding.propose import spread
from mmdiff.decoding.settings import Decoding, between, check_beside, whole, with_options
from mmdiff.decoding.stop import Seen
from mmdiff.errors import SettingError

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel

ACCEPTS = ("threshold", "factor", "entropy_bound", "entropy", "policy")  # count no steps


class Sized(Fixed):
    """`max_new_tokens` cells in blocks of chosen sizes, at most `look` cells long."""

    name: ClassVar[str]
    known: ClassVar[dict[str, float]]
    needs: ClassVar[dict[str, str]] = {"accept": "threshold"}

    def __init__(
        self, settings: Decoding, options: dict[str, Any], model: MMDiffModel, canvas: Canvas
    ) -> None:
        rule = f"length={self.name}"
        self.options = with_options(rule, options, self.known)
        if model.config.block_size is not None:
            raise SettingError(
                f"{rule}: this checkpoint knows blocks of {model.config.block_size} cells alone; "
                "use length=fixed"
            )
        beside: dict[str, tuple[Any, ...]] = {"remask": ("none",), "speculate": ("none",)}
        check_beside(rule, settings, accept=ACCEPTS, **beside)
        self.block_length = settings.block_length or settings.max_new_tokens
        self.look = self.looks(settings.max_new_tokens)
        self.settled = torch.zeros_like(canvas.ids[:, 0])  # the last block with a size, by row
        place = (canvas.block > 0).long().cumsum(1) - 1
        canvas.block = torch.where(canvas.block > 0, 1 + (place >= self.look), canvas.block)

    def looks(self, cells: int) -> int:
        """The largest size of a block in an answer of so many cells."""
        raise NotImplementedError

    def size(self, place: Tensor, chance: Tensor, tokens: Tensor) -> Tensor:
        """(b, 1) sizes of the blocks that begin now: the answer's cells (b, L) are numbered by
        `place` from the first one to fill, -1 before it; `tokens` are what the model would take
        there and `chance` their probability."""
        raise NotImplementedError

    def bound(self, canvas: Canvas, is_open: Tensor, seen: Seen) -> Tensor:
        now = canvas.open_block()
        ahead = (canvas.block >= now) & (canvas.open_cells().long().cumsum(1) > 0)
        place = torch.where(ahead, ahead.long().cumsum(1) - 1, -1)
        chance = spread(seen.proposal.probability, seen.need, 1.0)  # 1: given cells
        size = self.size(place, chance, spread(seen.proposal.tokens, seen.need, -1))
        number = now + (place >= size).long() + (place >= size + self.look)
        new = now > self.settled[seen.rows, None]
        canvas.block = torch.where(new & ahead, number, canvas.block)
        self.settled[seen.rows] = now[:, 0]
        return is_open & (canvas.block == now)


@LENGTHS.register("dynamic")
class Confident(Sized):
    """A block ends before its first cell less probable than `above`, but takes at least `least` and
    at most `block_length` cells: long where the model is sure of what comes, short where it is not.

    CtrlDiff (arXiv:2505.14455) learns the size by reinforcement and publishes neither weights nor
    code; here the model's own confidence takes the policy's place.
    """

    name = "dynamic"
    known: ClassVar[dict[str, float]] = {"least": 1, "above": 0.5}

    def looks(self, cells: int) -> int:
        self.least = whole("length=dynamic: least", self.options["least"])
        if self.least > self.block_length:
            raise SettingError(
                f"length=dynamic: least={self.least} is more than block_length={self.block_length}"
            )
        return self.block_length

    def size(self, place: Tensor, chance: Tensor, tokens: Tensor) -> Tensor:
        ends = (place >= self.least) & (place < self.look) & (chance < self.options["above"])
        return torch.where(ends, place, self.look).amin(1, keepdim=True)


@LENGTHS.register("adablock")
class Delimited(Sized):
    """A block ends behind the surest token `id`, a delimiter, of its first int(`share` N) cells
    where that one is predicted with probability `sure` or more; elsewhere it has `block_length`
    cells (AdaBlock-dLLM, arXiv:2509.26432, `llada/generate_adablock.py`, where 198 is the line
    break of LLaDA; comma and full stop, 11 and 13, are tried there too)."""

    name = "adablock"
    known: ClassVar[dict[str, float]] = {"id": 198, "sure": 0.3, "share": 0.25}

    def looks(self, cells: int) -> int:
        whole("length=adablock: id", self.options["id"], least=0)
        for name in ("sure", "share"):
            between(f"length=adablock: {name}", self.options[name], 0, 1)
        self.window = int(self.options["share"] * cells)
        return max(self.window, self.block_length)

    def size(self, place: Tensor, chance: Tensor, tokens: Tensor) -> Tensor:
        among = (place >= 0) & (place < self.window) & (tokens == self.options["id"])
        best, cell = torch.where(among, chance, -1.0).max(1, keepdim=True)
        found = place.gather(1, cell) + 1
        return torch.where(best >= self.options["sure"], found, self.block_length)
