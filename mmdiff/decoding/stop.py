"""When a row is finished before all its cells were decided one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.propose import Proposal, spread
from mmdiff.decoding.settings import PLAIN, Decoding, parse_rule, whole, with_options
from mmdiff.registry import Registry


@dataclass
class Seen:
    """What the model said in this step: a proposal for the K cells marked in `need` (b, L); `rows`
    (b,) are the open rows' numbers in the whole batch."""

    rows: Tensor
    need: Tensor
    proposal: Proposal


class Stop(Protocol):
    def __init__(self, options: dict[str, Any], settings: Decoding = PLAIN) -> None: ...

    def wants(self, canvas: Canvas) -> Tensor:
        """(b, L) bool: cells beside the open ones whose logits the rule needs in this step."""

    def __call__(self, canvas: Canvas, end_ids: Tensor, seen: Seen) -> None:
        """Close cells of a canvas that was just written; `end_ids` (n,) end a text."""


STOPS: Registry[type[Stop]] = Registry("stop", modules=("mmdiff.decoding.early",))


@STOPS.register("none")
class Never:
    """Every cell is decided by the model."""

    def __init__(self, options: dict[str, Any], settings: Decoding = PLAIN) -> None:
        with_options("stop", options, {})

    def wants(self, canvas: Canvas) -> Tensor:
        return torch.zeros_like(canvas.masked)

    def __call__(self, canvas: Canvas, end_ids: Tensor, seen: Seen | None = None) -> None:
        pass


@STOPS.register("end_of_text")
class EndOfText(Never):
    """Masked cells behind the first decided end-of-text, or other id that ends a text, become the
    first of these ids."""

    def __call__(self, canvas: Canvas, end_ids: Tensor, seen: Seen | None = None) -> None:
        fill = _behind(canvas, end_ids)
        if len(end_ids):
            canvas.ids = torch.where(fill, end_ids[0], canvas.ids)
            canvas.masked = canvas.masked & ~fill


@STOPS.register("cut")
class Cut(Never):
    """Masked cells behind the first decided end keep their mask ids and are not decided: the cells
    before are filled as if the answer went on (LLaDA-V `generate_with_embeds`). Where a remask rule
    takes that end away, they are masked again."""

    def __init__(self, options: dict[str, Any], settings: Decoding = PLAIN) -> None:
        super().__init__(options, settings)
        self.keeps = parse_rule(settings.remask)[0] == "none"
        self.cut: dict[int, Tensor] = {}  # by row: ids (L,) of the cells cut off, -1 elsewhere

    def __call__(self, canvas: Canvas, end_ids: Tensor, seen: Seen | None = None) -> None:
        if seen is not None and not self.keeps:
            self.restore(canvas, end_ids, seen.rows.tolist())
        canvas.masked = canvas.masked & ~_behind(canvas, end_ids)

    def restore(self, canvas: Canvas, end_ids: Tensor, rows: list[int]) -> None:
        """Mask again what was cut off behind ends that are gone, then note what will be cut."""
        nothing = torch.full_like(canvas.ids[0], -1)
        cut = torch.stack([self.cut.get(row, nothing) for row in rows])
        canvas.masked = canvas.masked | (cut >= 0)
        canvas.ids = torch.where(cut >= 0, cut, canvas.ids)
        now = torch.where(_behind(canvas, end_ids), canvas.ids, -1)
        self.cut = dict(zip(rows, now, strict=True))


@STOPS.register("block")
class AfterBlock(Never):
    """Blocks behind the first one that was filled and holds an end keep their mask ids (SDAR
    `generate.py`)."""

    def __call__(self, canvas: Canvas, end_ids: Tensor, seen: Seen | None = None) -> None:
        full = canvas.block < canvas.open_block()
        last = torch.where(full & _ends(canvas, end_ids), canvas.block, canvas.block.max())
        canvas.masked = canvas.masked & (canvas.block <= last.amin(1, keepdim=True))


@STOPS.register("repeats")
class Repeating(AfterBlock):
    """As `block`; an answer also ends with a block behind which its full blocks end with the same
    ids `times` times in a row (SDAR-VL `generate.py`)."""

    def __init__(self, options: dict[str, Any], settings: Decoding = PLAIN) -> None:
        times = with_options("stop=repeats", options, {"times": 20})["times"]
        self.times = whole("stop=repeats: times", times, least=2)

    def __call__(self, canvas: Canvas, end_ids: Tensor, seen: Seen | None = None) -> None:
        super().__call__(canvas, end_ids, seen)
        full = canvas.writable & (canvas.block < canvas.open_block())
        for row, cells in enumerate(full):
            if ends_in_repeats(canvas.ids[row, cells].tolist(), self.times):
                canvas.masked[row] = False


def ends_in_repeats(ids: list[int], times: int) -> bool:
    """Whether ids end with one and the same run of ids `times` times in a row."""
    return any(
        ids[-size * times :] == ids[-size:] * times for size in range(1, len(ids) // times + 1)
    )


@STOPS.register("batch_block_end")
class BatchBlockEnd(Never):
    """Blocks behind one that ends with an end in every row of the batch keep their mask ids (MMaDA
    `mmu_generate_fast`)."""

    def __call__(self, canvas: Canvas, end_ids: Tensor, seen: Seen | None = None) -> None:
        done = canvas.open_block() - 1
        last = (canvas.block == done).long().cumsum(1).argmax(1, keepdim=True)
        ended = (done > 0) & torch.isin(canvas.ids.gather(1, last), end_ids)
        canvas.masked = canvas.masked & ~ended.all()


@STOPS.register("stable")
class Stable(EndOfText):
    """The rest of the open block takes the most likely tokens once these have not changed for
    `stability` steps and their mean entropy is below `confidence` (DiffusionGemma in transformers).
    Ends of text count as in `end_of_text`."""

    def __init__(self, options: dict[str, Any], settings: Decoding = PLAIN) -> None:
        chosen = with_options("stop=stable", options, {"stability": 1, "confidence": 0.005})
        self.stability, self.confidence = chosen["stability"], chosen["confidence"]
        self.repeats = Repeats()

    def __call__(self, canvas: Canvas, end_ids: Tensor, seen: Seen | None = None) -> None:
        assert seen is not None
        logits = seen.proposal.logits.float()
        best = canvas.ids.clone()
        best[seen.need] = logits.argmax(1)
        entropy = spread(torch.special.entr(logits.softmax(1)).sum(1), seen.need, 0.0)
        mean = entropy.sum(1) / seen.need.sum(1).clamp(min=1)
        stop = (self.repeats(best, seen.rows) >= self.stability) & (mean < self.confidence)
        canvas.write(best, canvas.masked & seen.need & stop[:, None])
        super().__call__(canvas, end_ids, seen)


class Repeats:
    """For how many steps in a row each row has been what it is now."""

    def __init__(self) -> None:
        self.last: dict[int, tuple[list[int], int]] = {}

    def __call__(self, ids: Tensor, rows: Tensor) -> Tensor:
        """(b,) steps of equal `ids` (b, L) before this one; `rows` (b,) names the rows."""
        counts = []
        for row, now in zip(rows.tolist(), ids.tolist(), strict=True):
            before, count = self.last.get(row, ([], 0))
            count = count + 1 if now == before else 0
            self.last[row] = now, count
            counts.append(count)
        return torch.tensor(counts, device=ids.device)


def _ends(canvas: Canvas, end_ids: Tensor) -> Tensor:
    """(B, L) bool: decided cells that hold one of these ids (n,)."""
    return canvas.writable & ~canvas.masked & torch.isin(canvas.ids, end_ids)


def _behind(canvas: Canvas, end_ids: Tensor) -> Tensor:
    """(B, L) bool: masked cells behind a decided one of these ids (n,)."""
    return canvas.masked & (_ends(canvas, end_ids).long().cumsum(1) > 0)


def answer_length(ids: Tensor, end_ids: Sequence[int]) -> Tensor:
    """(B,) cells of answers (B, N) up to and including the first of the ids that end a text."""
    cells = ids.shape[1]
    ends = torch.tensor(end_ids, dtype=torch.long, device=ids.device)
    ended = torch.isin(ids, ends).long().cumsum(1) > 0
    return (cells - ended.sum(1) + ended.any(1)).long()
