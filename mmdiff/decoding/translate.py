"""The ids of one vocabulary as a model with another one reads them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Container
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from mmdiff.errors import SettingError

if TYPE_CHECKING:
    from mmdiff.decoding.guide_model import GuideModel
    from mmdiff.model import MMDiffModel

CONTEXT = 4  # ids before a piece that its text may depend on
BROKEN = "\N{REPLACEMENT CHARACTER}"  # what the half of a character is decoded to


@dataclass(frozen=True)
class Reading:
    """`ids` as the guide reads a row; `spans`: which of them spell each id from a given one on,
    nothing where it is not read."""

    ids: list[int]
    spans: list[range]


Translate = Callable[[list[int], int], Reading]


def translator(model: MMDiffModel, guide: GuideModel, ends: Container[int]) -> Translate:
    """(ids of a row, number of the first one to be judged) -> Reading. `ends` end a text.

    Ids stay as they are where each text of the guide's vocabulary has the same id here. Without
    tokenizer files on both sides that is taken for granted; SettingError where sizes speak
    against it.
    """
    own = None if model.processor is None else model.processor.tokenizer
    if own is None or guide.tokenizer is None:
        if guide.rows != model.rows:
            raise SettingError(
                f"guide: its vocabulary has {guide.rows} ids, this model's {model.rows}, and "
                "without tokenizer files on both sides they cannot be translated"
            )
        return SameIds(range(guide.rows), guide.begin)
    said, known = guide.tokenizer.get_vocab(), own.get_vocab()
    if said.items() <= known.items():
        return SameIds(set(said.values()), guide.begin)
    return ByText(own, guide, ends)


class SameIds:
    """Ids that both know. Others, such as a mask token of the diffusion model's, are left out."""

    def __init__(self, known: set[int] | range, begin: int | None) -> None:
        self.known, self.begin = known, begin

    def __call__(self, ids: list[int], first: int) -> Reading:
        read, spans = opening(self.begin, ids), []
        for i in ids:
            start = len(read)
            read += [i] if i in self.known else []
            spans.append(range(start, len(read)))
        return Reading(read, spans[first:])


class ByText:
    """The text of a row, special tokens included (as published), in the guide's tokens.

    Tokens of the two need not begin and end together: a cell is spelled by every token of the guide
    that covers some of its text (the published code compares both lists number by number instead).
    The diffusion model's end of text is the guide's, and nothing behind it is read.
    """

    def __init__(self, own: Any, guide: GuideModel, ends: Container[int]) -> None:
        self.own, self.guide, self.ends = own, guide, ends

    def __call__(self, ids: list[int], first: int) -> Reading:
        stop = next((i for i in range(first, len(ids)) if ids[i] in self.ends), len(ids))
        text, pieces = spell(self.own, ids[:stop], first)
        read = self.guide.tokenizer(
            text + "".join(pieces), add_special_tokens=False, return_offsets_mapping=True
        )
        made = opening(self.guide.begin, read["input_ids"])
        shift = len(made)
        made = made + list(read["input_ids"])
        starts, stops = ([place[side] for place in read["offset_mapping"]] for side in (0, 1))
        spans = [
            # An id that ends inside a character is judged with that character.
            range(shift + bisect_right(stops, a), shift + bisect_left(starts, max(b, a + 1)))
            for a, b in pairwise(accumulate(map(len, pieces), initial=len(text)))
        ]
        if stop < len(ids) and self.guide.end is not None:
            spans.append(range(len(made), len(made) + 1))
            made.append(self.guide.end)
        nothing = [range(len(made), len(made))] * (len(ids) - first - len(spans))
        return Reading(made, spans + nothing)


def opening(begin: int | None, ids: list[int]) -> list[int]:
    """What stands before a text that should start with `begin`."""
    return [] if begin is None or ids[:1] == [begin] else [begin]


def spell(tokenizer: Any, ids: list[int], first: int) -> tuple[str, list[str]]:
    """The text of ids[:first], and what each later id adds to it: an id that ends inside a
    character adds nothing, the one that completes it adds all of it."""

    def text(part: list[int]) -> str:
        made: str = tokenizer.decode(
            part, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return made

    start, read, pieces = max(0, first - CONTEXT), first, []
    for stop in range(first + 1, len(ids) + 1):
        before, now = text(ids[start:read]), text(ids[start:stop])
        complete = len(now) > len(before) and not now.endswith(BROKEN)
        pieces.append(now[len(before) :] if complete else "")
        if complete:
            start, read = read, stop
    return text(ids[:first]), pieces
