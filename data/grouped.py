"""Batches of similar length from any source, in an order that is a pure function of the seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from mmdiff.data.source import Sample, Source
from mmdiff.diffusion.schedule import uniform

BATCHES = 0x0D6  # key of a draw


@dataclass
class Grouped:
    """The samples of `source`, those of each `batches` steps sorted by length before they are cut
    into batches of `size`. Processes, parts of a step and a resume change nothing in the order."""

    source: Source
    size: int
    batches: int
    _order: tuple[tuple[int, int], list[int]] | None = field(default=None, repr=False)

    def sample(self, index: int, seed: int, turns: int, split: str) -> Sample:
        return replace(self.source.sample(self.place(index, seed), seed, turns, split), index=index)

    def name(self, index: int, seed: int, split: str) -> str:
        return self.source.name(self.place(index, seed), seed, split)

    def length(self, index: int, seed: int) -> int:
        return self.source.length(self.place(index, seed), seed)

    def text(self, seed: int) -> Iterator[str]:
        return self.source.text(seed)

    def place(self, index: int, seed: int) -> int:
        """Which of the source's samples is number `index`."""
        window, inside = divmod(index, self.size * self.batches)
        first = index - inside
        if self._order is None or self._order[0] != (seed, window):
            numbers = range(first, first + self.size * self.batches)
            lengths = [self.source.length(number, seed) for number in numbers]
            self._order = (seed, window), grouped(lengths, self.size, seed, window)
        return first + self._order[1][inside]


def grouped(lengths: Sequence[int], size: int, seed: int, window: int) -> list[int]:
    """Indices of `lengths`, by length in runs of `size`, the runs in an order of their own for each
    seed and window; equal lengths as they come."""
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    count = len(lengths) // size
    keys = torch.tensor(seed), torch.tensor(window), torch.arange(count), torch.tensor(BATCHES)
    order = uniform(*keys).argsort(stable=True).tolist()
    return [by_length[run * size + i] for run in order for i in range(size)]
