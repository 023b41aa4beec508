"""Data files as training sources: recorded conversations, and mixtures of sources.

A sample is a pure function of (seed, index): each pass over the rows is a seeded permutation, and a
mixture's part is drawn by the index, with the counter-based `uniform` that noise is drawn with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from mmdiff.data.check import Checked
from mmdiff.data.pictures import read
from mmdiff.data.readers import Reader
from mmdiff.data.rows import BadRow, DataRow, read_row
from mmdiff.data.source import Sample, Source, Turn
from mmdiff.diffusion.schedule import uniform
from mmdiff.errors import DataError

ORDER, ONE, DRAW, TAKE, HELD = 0x0D1, 0x0D2, 0x0D3, 0x0D4, 0x0D5  # keys of independent draws
TEXTS = 20_000  # rows that a new tokenizer is fitted on
CHUNK = 1 << 16


@dataclass(frozen=True)
class Recorded:
    """The good `rows` of a data file, whose contents have this `digest`. `every` answer of a sample
    is trained on, or one at random; end-of-text pads each to at most `cells`."""

    file: Path
    root: Path
    reader: Reader
    rows: tuple[Checked, ...]
    digest: str = ""
    every: bool = True
    cells: int = 64

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, index: int, seed: int, turns: int, split: str) -> Sample:
        """A conversation: each answer's request is the messages before it. Raises DataError where
        the row is no longer what it was when it was checked."""
        row = self.rows[self.row_number(index, seed)]
        try:
            made = self.conversation(row)
            images = tuple(read(source, self.root) for source in made.images)
        except (BadRow, OSError) as error:
            text = f"{self.file} {row.place} has changed since it was checked: {error}"
            raise DataError(text) from None
        answers = made.answers
        if not self.every:
            answers = [answers[int(draw(seed, index, ONE) * len(answers))]]
        asked = tuple(
            Turn(made.messages[:i], made.messages[i]["content"], self.cells) for i in answers
        )
        return Sample(index, images, asked, whole=True)

    def conversation(self, row: Checked) -> DataRow:
        return read_row(self.reader.fetch(row.address))

    def row_number(self, index: int, seed: int) -> int:
        turn, place = divmod(index, len(self.rows))
        return int(permutation(len(self.rows), seed, turn)[place])

    def name(self, index: int, seed: int, split: str) -> str:
        row = self.rows[self.row_number(index, seed)]
        return f"{self.file.name} {row.place}" + (f" ({row.id})" if row.id else "")

    def length(self, index: int, seed: int) -> int:
        return self.rows[self.row_number(index, seed)].length

    def text(self, seed: int) -> Iterator[str]:
        for row in islice(self.rows, TEXTS):
            for message in self.conversation(row).messages:
                content = message["content"]
                parts = [{"text": content}] if isinstance(content, str) else content
                yield from (part["text"] for part in parts if "text" in part)

    def taken(self, take: str, seed: int) -> Recorded:
        """all, first:N or random:N of the rows, in the file's order."""
        how, _, count = take.partition(":")
        if how == "all":
            return self
        if int(count) > len(self):
            raise DataError(f"{self.file}: take {take}, but only {len(self)} rows are good")
        if how == "first":
            return replace(self, rows=self.rows[: int(count)])
        chosen = permutation(len(self), seed, TAKE)[: int(count)].sort().values
        return replace(self, rows=tuple(self.rows[i] for i in chosen.tolist()))

    def divided(self, share: float, seed: int, by: str = "picture") -> tuple[Recorded, Recorded]:
        """Rows to train on, and rows held out: about a `share` of the pictures (or questions), at
        least one. Rows that share a picture (or a question) stay together."""
        of = [
            row.group if by == "picture" else self.conversation(row).question for row in self.rows
        ]
        groups = list(dict.fromkeys(of))
        if len(groups) < 2:
            raise DataError(
                f"{self.file}: all rows have one {by}, so none can be held out; "
                "name a file: validation=PATH"
            )
        count = min(max(1, round(share * len(groups))), len(groups) - 1)
        held = {groups[i] for i in permutation(len(groups), seed, HELD)[:count].tolist()}
        pairs = list(zip(self.rows, of, strict=True))
        sides = [tuple(r for r, group in pairs if (group in held) == out) for out in (False, True)]
        return replace(self, rows=sides[0]), replace(self, rows=sides[1])


@dataclass(frozen=True)
class Mixture:
    """Sources drawn from by weight; each is gone through in its own seeded order."""

    parts: tuple[Source, ...]
    weights: tuple[float, ...]

    def sample(self, index: int, seed: int, turns: int, split: str) -> Sample:
        part, inside = self.place(index, seed)
        return replace(self.parts[part].sample(inside, seed, turns, split), index=index)

    def name(self, index: int, seed: int, split: str) -> str:
        part, inside = self.place(index, seed)
        return self.parts[part].name(inside, seed, split)

    def length(self, index: int, seed: int) -> int:
        part, inside = self.place(index, seed)
        return self.parts[part].length(inside, seed)

    def text(self, seed: int) -> Iterator[str]:
        for part in self.parts:
            yield from part.text(seed)

    def place(self, index: int, seed: int) -> tuple[int, int]:
        """The part that a sample comes from, and its number among those of the part."""
        chunk, inside = divmod(index, CHUNK)
        draws = part_draws(self.weights, seed, chunk)
        part = int(draws[inside])
        before = draws_before(self.weights, seed, chunk)[part]
        return part, before + int((draws[:inside] == part).sum())


@dataclass(frozen=True)
class Divided:
    """One source to train on, another to validate on. `left_out` says in words which rows of the
    files are not used, `files` are the files' names and digests."""

    train: Source
    held: Source
    left_out: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()

    def _of(self, split: str) -> Source:
        return self.held if split == "validation" else self.train

    def sample(self, index: int, seed: int, turns: int, split: str) -> Sample:
        return self._of(split).sample(index, seed, turns, split)

    def name(self, index: int, seed: int, split: str) -> str:
        return self._of(split).name(index, seed, split)

    def length(self, index: int, seed: int) -> int:
        return self.train.length(index, seed)

    def text(self, seed: int) -> Iterator[str]:
        return self.train.text(seed)


def draw(*keys: int) -> float:
    """U(0, 1) by integer keys."""
    return float(uniform(*(torch.tensor(key) for key in keys)))


@lru_cache(maxsize=16)
def permutation(size: int, seed: int, turn: int) -> Tensor:
    """(size,) the order of a pass over the rows."""
    keys = torch.tensor(seed), torch.tensor(turn), torch.arange(size), torch.tensor(ORDER)
    return uniform(*keys).argsort(stable=True)


@lru_cache(maxsize=4)
def part_draws(weights: tuple[float, ...], seed: int, chunk: int) -> Tensor:
    """(CHUNK,) the parts of samples chunk * CHUNK onwards."""
    index = torch.arange(chunk * CHUNK, (chunk + 1) * CHUNK)
    ends = torch.tensor(weights, dtype=torch.float64).cumsum(0)
    drawn = uniform(torch.tensor(seed), index, torch.tensor(DRAW))
    return torch.bucketize(drawn, ends[:-1] / ends[-1], right=True)


@lru_cache(maxsize=4096)
def draws_before(weights: tuple[float, ...], seed: int, chunk: int) -> list[int]:
    """How many samples of each part come before a chunk."""
    if chunk == 0:
        return [0] * len(weights)
    for earlier in range(1, chunk):  # fills the cache from the front, or the call below nests deep
        draws_before(weights, seed, earlier)
    counts = part_draws(weights, seed, chunk - 1).bincount(minlength=len(weights))
    return (counts + torch.tensor(draws_before(weights, seed, chunk - 1))).tolist()
