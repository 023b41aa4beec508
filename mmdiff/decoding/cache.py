"""What the model need not compute again at every step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor

from mmdiff.backbone import KeyValueCache
from mmdiff.canvas import Canvas
from mmdiff.decoding.settings import PLAIN, Decoding, parse_rule, with_options
from mmdiff.registry import Registry

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel


class Cache(Protocol):
    calls: int | Tensor = 1  # of the backbone per step, for one row; (b,) where rows differ
    total: int = 0  # of the backbone so far; rows may need calls of their own
    start: int = 0  # first column that a step feeds
    prompt_only: ClassVar[bool] = False  # keeps nothing of the answer between steps
    foreseen: bool = False  # scores only the cells that are decided, which must be known before
    options: ClassVar[dict[str, float]] = {}  # with defaults; arguments of the class

    def __init__(
        self, model: MMDiffModel, canvas: Canvas, settings: Decoding = PLAIN, **options: float
    ) -> None:
        """Runs encoders and, where kept, the prompt."""

    def score(self, canvas: Canvas, need: Tensor) -> Tensor:
        """(K, V) logits of the needed cells (b, L) of the rows still open."""

    def select(self, rows: Tensor) -> None:
        """Keep only these rows."""

    def view(self, rows: Tensor) -> Cache:
        """The same of these rows (n,), some perhaps several times; this one stays as it is. Only
        where `prompt_only`."""
        made = copy.copy(self)
        made.select(rows)
        return made


CACHES: Registry[type[Cache]] = Registry(
    "cache",
    modules=tuple(f"mmdiff.decoding.{n}" for n in ("windows", "max_logit", "refresh")),
)


def cache_maker(model: MMDiffModel, settings: Decoding) -> Callable[[MMDiffModel, Canvas], Cache]:
    """The cache that the settings name, still to be given a model and a canvas."""
    name, given = parse_rule(settings.cache)
    if name == "auto" and model.config.attention_layout == "block":
        name = "block"
    elif name == "auto":
        name = "prefix" if model.config.prompt_cache_exact else "none"
    kind = CACHES.get(name)
    options = with_options(f"cache={name}", given, kind.options)
    make: Callable[..., Cache] = kind
    return partial(make, settings=settings, **options)


@CACHES.register("none")
class NoCache(Cache):
    """The whole canvas at every step; encoders still run once."""

    prompt_only = True

    def __init__(self, model: MMDiffModel, canvas: Canvas, settings: Decoding = PLAIN) -> None:
        self.model = model
        self.prompt = model.embed(canvas)[:, : canvas.prompt_length]

    def score(self, canvas: Canvas, need: Tensor) -> Tensor:
        self.total += 1
        answer = self.model.get_input_embeddings()(canvas.ids[:, canvas.prompt_length :])
        embeds = torch.cat([self.prompt, answer], dim=1)
        return self.model.head(self.model.pick(self.model.hidden(canvas, embeds), need))

    def select(self, rows: Tensor) -> None:
        self.prompt = self.prompt[rows]


@CACHES.register("prefix")
class PrefixCache(Cache):
    """Keys and values of the prompt, computed once; each step feeds only the answer columns.

    Exact for checkpoints trained with the prefix or block layout, where the prompt never sees the
    answer; approximate otherwise (LaViDa's inference, arXiv:2505.16839 B.4). A shifted checkpoint
    also keeps the hidden state of the last prompt cell, which scores the first answer cell.
    """

    prompt_only = True

    def __init__(self, model: MMDiffModel, canvas: Canvas, settings: Decoding = PLAIN) -> None:
        self.model = model
        self.start = canvas.prompt_length
        self.store = KeyValueCache(canvas.ids.shape[1])
        prompt = model.embed(canvas)[:, : self.start]
        hidden = model.hidden(canvas, prompt, 0, self.start, self.store)
        self.last = hidden[:, self.start - int(model.config.shift) :]

    def score(self, canvas: Canvas, need: Tensor) -> Tensor:
        self.total += 1
        self.store.widen(canvas.shape[1])
        answer = self.model.get_input_embeddings()(canvas.ids[:, self.start :])
        hidden = self.model.hidden(canvas, answer, self.start, None, self.store)
        hidden = torch.cat([self.last, hidden], dim=1)
        first = self.start - self.last.shape[1]
        return self.model.head(self.model.pick(hidden, need, first))

    def select(self, rows: Tensor) -> None:
        self.last = self.last[rows]
        self.store = copy.copy(self.store)  # others may hold it
        self.store.select(rows)
