"""Training sources: where pictures and conversations come from.

A source is a pure function of a sample's index: the same index gives the same sample whatever the
batch size, number of processes or resume point.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from mmdiff.registry import Registry


@dataclass(frozen=True)
class Turn:
    """One request and its answer. End-of-text pads the answer to at most `cells`."""

    request: str
    answer: str
    cells: int


@dataclass(frozen=True)
class Anchor:
    """What stands at a place of the picture (x, y in fractions of its sides), and its words."""

    x: float
    y: float
    words: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """A picture (PIL, RGB), independent turns about it, and anchors where a source knows them."""

    index: int
    image: Any
    turns: tuple[Turn, ...]
    anchors: tuple[Anchor, ...] = ()


class Source(Protocol):
    """`split` is train or validation."""

    def sample(self, index: int, seed: int, turns: int, split: str) -> Sample: ...

    def text(self, seed: int) -> Iterator[str]:
        """Text to fit a tokenizer on."""


SOURCES: Registry[type[Source]] = Registry("data source", modules=("mmdiff.data.tabletop_source",))
