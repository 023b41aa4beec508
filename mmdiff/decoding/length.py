"""How long an answer becomes: as many cells as asked for, or as the model needs.

Growing inserts cells, so rows of a batch may come to differ in length: shorter ones are padded on
the right with cells that are not valid, which nothing sees and which read as end-of-text.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.canvas import Canvas, set_blocks
from mmdiff.decoding.draws import most_likely
from mmdiff.decoding.propose import log_odds, spread
from mmdiff.decoding.settings import Decoding, check_beside, whole, with_options
from mmdiff.decoding.stop import Seen
from mmdiff.errors import SettingError
from mmdiff.registry import Registry

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel


class Length(Protocol):
    inserts: ClassVar[bool] = False  # cells

    def __init__(
        self, settings: Decoding, options: dict[str, Any], model: MMDiffModel, canvas: Canvas
    ) -> None: ...

    def need(self, canvas: Canvas, need: Tensor) -> Tensor:
        """(b, L) bool: the cells to score, of which `need` must be."""

    def bound(self, canvas: Canvas, is_open: Tensor, seen: Seen) -> Tensor:
        """(b, L) bool: which of the open cells may be decided now, as what the model said has it.
        May renumber the blocks of the canvas."""

    def grow(self, canvas: Canvas, end_ids: Tensor, seen: Seen) -> Canvas:
        """The canvas after this step, with more cells where the rule wants them."""


LENGTHS: Registry[type[Length]] = Registry("length", modules=("mmdiff.decoding.block_sizes",))


@LENGTHS.register("fixed")
class Fixed(Length):
    """`max_new_tokens` cells."""

    def __init__(
        self, settings: Decoding, options: dict[str, Any], model: MMDiffModel, canvas: Canvas
    ) -> None:
        with_options("length=fixed", options, {})

    def need(self, canvas: Canvas, need: Tensor) -> Tensor:
        return need

    def bound(self, canvas: Canvas, is_open: Tensor, seen: Seen) -> Tensor:
        return is_open

    def grow(self, canvas: Canvas, end_ids: Tensor, seen: Seen) -> Canvas:
        return canvas


@LENGTHS.register("grow")
class Grow(Length):
    """Begins with `max_new_tokens` cells and inserts more, `most` in total (DAEDAL,
    arXiv:2508.00819).

    How surely the answer ends is e, the sum of p(end) over the last `check` answer cells that
    predict an end, divided by `check`. First nothing is accepted: a row gets `factor` masks more
    each step until e reaches `end`, then check // 2 cells that hold an end. From then on, while e
    is below `keep`, the least probable open cell below `low` that was not accepted becomes `factor`
    masks; what this pushes beyond `most` is dropped. Blocks are counted anew after each insertion.
    """

    inserts = True
    known: ClassVar[dict[str, float]] = {
        "factor": 8, "end": 0.5, "keep": 0.9, "low": 0.1, "check": 32, "most": 2048
    }  # fmt: skip

    def __init__(
        self, settings: Decoding, options: dict[str, Any], model: MMDiffModel, canvas: Canvas
    ) -> None:
        chosen = with_options("length=grow", options, self.known)
        self.factor, self.check, self.most = (
            whole(f"length=grow: {name}", chosen[name]) for name in ("factor", "check", "most")
        )
        self.end, self.keep, self.low = (chosen[name] for name in ("end", "keep", "low"))
        self.settings = settings
        self.mask_id = model.config.mask_token_id
        self.aligned = model.config.block_size is not None
        answer = canvas.masked & canvas.writable
        self._check(answer[:, canvas.prompt_length :])
        self.measuring = torch.ones_like(canvas.masked[:, 0])

    def _check(self, answer: Tensor) -> None:
        settings = self.settings
        if answer.shape[1] > self.most:
            raise SettingError(f"length=grow: most={self.most} is less than max_new_tokens")
        if not bool(answer.all()):
            raise SettingError("length=grow needs an answer of nothing but cells to fill")
        accepts = ("threshold", "factor", "entropy_bound")
        stops = ("end_of_text", "cut", "block", "none")
        check_beside("length=grow", settings, accept=accepts, stop=stops, remask=("none",))

    def need(self, canvas: Canvas, need: Tensor) -> Tensor:
        self.open = canvas.open_cells()
        return need | canvas.writable

    def bound(self, canvas: Canvas, is_open: Tensor, seen: Seen) -> Tensor:
        return is_open & ~self.measuring[seen.rows, None]

    def grow(self, canvas: Canvas, end_ids: Tensor, seen: Seen) -> Canvas:
        if not len(end_ids):
            raise SettingError("length=grow looks for an end-of-text, which this model has not")
        ending, cells = self.ending(canvas, end_ids, seen), canvas.writable.sum(1)
        room = cells < self.most
        measuring = self.measuring[seen.rows]
        longer = measuring & (ending < self.end) & room
        settled = measuring & ~longer
        chance = spread(seen.proposal.probability, seen.need, 1.0)
        unsure = (self.open & canvas.masked & (chance < self.low)).to(chance) * (1 - chance)
        split = ~measuring & (ending < self.keep) & room & (unsure > 0).any(1)
        self.measuring[seen.rows] = longer

        count = self.factor * longer + self.check // 2 * settled + (self.factor - 1) * split
        if not bool(count.any()):
            return canvas
        at = torch.where(split, unsure.argmax(1), canvas.prompt_length + cells)
        length = (cells + count).clamp(max=self.most)
        grown = insert(canvas, at, count, length, self.mask_id, settled, end_ids[0])
        set_blocks(grown, self.settings.block_length, self.aligned)
        return grown

    def ending(self, canvas: Canvas, end_ids: Tensor, seen: Seen) -> Tensor:
        """(b,) e of the rows still open."""
        logits, chance = seen.proposal.logits, seen.proposal.probability
        best = seen.proposal.tokens
        if self.settings.temperature:
            best = most_likely(logits)
            chance = log_odds(logits, best).sigmoid()
        ends = spread(torch.isin(best, end_ids), seen.need, False) & canvas.writable
        last = ends & (ends.flip(1).long().cumsum(1).flip(1) <= self.check)
        return (spread(chance, seen.need, 0.0) * last).sum(1) / self.check


def widen(canvas: Canvas, columns: int, end_ids: Tensor) -> None:
    """Pad every row of a canvas to `columns` columns."""
    more = columns - canvas.shape[1]
    canvas.ids = F.pad(canvas.ids, (0, more), value=int(end_ids[0]))
    for name in ("masked", "writable", "valid", "block", "segment", "copy", "position"):
        setattr(canvas, name, F.pad(getattr(canvas, name), (0, more)))
    canvas.features = None  # its cells count the columns that were there


def insert(
    canvas: Canvas,
    at: Tensor,
    count: Tensor,
    length: Tensor,
    mask_id: int,
    given: Tensor,
    end_id: Tensor,
) -> Canvas:
    """The canvas with `count` (b,) new cells before column `at` (b,) of each row's answer, cut to
    `length` (b,) answer cells: masks, or where `given` (b,) decided ones that hold `end_id`.

    All answer cells become block 1. The answer must be all that stands behind the prompt.
    """
    first = canvas.prompt_length
    column = torch.arange(first + int(length.max()), device=canvas.device)[None]
    at, count = at[:, None], count[:, None]
    new = (column >= at) & (column < at + count)
    source = torch.where(column < at, column, (column - count).clamp(min=first))
    source = source.clamp(max=canvas.shape[1] - 1)

    def moved(values: Tensor) -> Tensor:
        return values.gather(1, source)

    answer = (column >= first) & (column < first + length[:, None])
    padding = column >= first + length[:, None]
    fill = torch.where(given[:, None], end_id, mask_id)
    ids = torch.where(padding, end_id, torch.where(new, fill, moved(canvas.ids)))
    masked = torch.where(new, ~given[:, None], moved(canvas.masked))
    start = canvas.position[..., first, None]
    behind = start + column[0, first:] - first
    return replace(
        canvas,
        ids=ids,
        masked=masked & ~padding,
        writable=answer,
        valid=torch.where(column < first, moved(canvas.valid), answer),
        block=torch.where(column < first, moved(canvas.block), answer.long()),
        segment=moved(canvas.segment),
        copy=moved(canvas.copy),
        position=torch.cat([canvas.position[..., :first], behind], dim=-1),
        features=None,
    )
