"""Training sources: where pictures and conversations come from.

A source is a pure function of a sample's index: the same index gives the same sample whatever the
batch size, number of processes or resume point.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from mmdiff.heads.base import user_message
from mmdiff.registry import Registry


@dataclass(frozen=True)
class Turn:
    """One request and its answer. End-of-text pads the answer to at most `cells`.

    A request is a question about all pictures of the sample, or the messages of a conversation so
    far, which show the first of them.
    """

    request: str | tuple[dict[str, Any], ...]
    answer: str
    cells: int

    def messages(self, pictures: int) -> list[dict[str, Any]]:
        """As `Processor.prompt_ids` takes them, for a sample of so many pictures."""
        if isinstance(self.request, str):
            return [user_message(self.request, pictures)]
        return list(self.request)


@dataclass(frozen=True)
class Anchor:
    """What stands at a place of the picture (x, y in fractions of its sides), and its words."""

    x: float
    y: float
    words: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """Pictures (PIL, RGB), independent turns about them, and anchors where a source knows them.

    Of a `whole` sample every turn is trained on; of another as many as its row has room for.
    """

    index: int
    images: tuple[Any, ...]
    turns: tuple[Turn, ...]
    anchors: tuple[Anchor, ...] = ()
    whole: bool = False


class Source(Protocol):
    """`split` is train or validation."""

    def sample(self, index: int, seed: int, turns: int, split: str) -> Sample: ...

    def name(self, index: int, seed: int, split: str) -> str:
        """What a person finds the sample by."""

    def length(self, index: int, seed: int) -> int:
        """Canvas cells of a training sample, for batches of similar length; 0 where all are
        alike."""

    def text(self, seed: int) -> Iterator[str]:
        """Text to fit a tokenizer on."""


SOURCES: Registry[type[Source]] = Registry("data source", modules=("mmdiff.data.tabletop_source",))
