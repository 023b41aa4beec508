"""What the model need not compute again at every step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from mmdiff.backbone import KeyValueCache
from mmdiff.canvas import Canvas
from mmdiff.registry import Registry

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel


class Cache(Protocol):
    def __init__(self, model: MMDiffModel, canvas: Canvas) -> None:
        """Runs encoders and, where kept, the prompt."""

    def score(self, canvas: Canvas, need: Tensor) -> Tensor:
        """(K, V) logits of the needed cells (b, L) of the rows still open."""

    def select(self, rows: Tensor) -> None:
        """Keep only these rows."""


CACHES: Registry[type[Cache]] = Registry("cache")


@CACHES.register("none")
class NoCache:
    """The whole canvas at every step; encoders still run once."""

    def __init__(self, model: MMDiffModel, canvas: Canvas) -> None:
        self.model = model
        self.prompt = model.embed(canvas)[:, : canvas.prompt_length]

    def score(self, canvas: Canvas, need: Tensor) -> Tensor:
        embeds = embed_answer(self.model, canvas, self.prompt)
        return self.model.head(self.model.pick(self.model.hidden(canvas, embeds), need))

    def select(self, rows: Tensor) -> None:
        self.prompt = self.prompt[rows]


@CACHES.register("prefix")
class PrefixCache:
    """Keys and values of the prompt, computed once; each step feeds only the answer columns.

    Exact for checkpoints trained with the prefix or block layout, where the prompt never sees the
    answer; approximate otherwise (LaViDa's inference, arXiv:2505.16839 B.4). A shifted checkpoint
    also feeds the last prompt column, which scores the first answer cell.
    """

    def __init__(self, model: MMDiffModel, canvas: Canvas) -> None:
        self.model = model
        self.start = canvas.prompt_length - int(model.config.shift)
        self.store = KeyValueCache(canvas.ids.shape[1])
        prompt = model.embed(canvas)[:, : canvas.prompt_length]
        model.hidden(canvas, prompt, 0, canvas.prompt_length, self.store)
        self.tail = prompt[:, self.start :]

    def score(self, canvas: Canvas, need: Tensor) -> Tensor:
        embeds = embed_answer(self.model, canvas, self.tail)
        hidden = self.model.hidden(canvas, embeds, self.start, None, self.store)
        return self.model.head(self.model.pick(hidden, need, self.start))

    def select(self, rows: Tensor) -> None:
        self.tail = self.tail[rows]
        self.store.select(rows)


def embed_answer(model: MMDiffModel, canvas: Canvas, before: Tensor) -> Tensor:
    """(b, Q, D): kept embeddings of prompt columns, then those of the answer as it is now."""
    answer = model.get_input_embeddings()(canvas.ids[:, canvas.prompt_length :])
    return torch.cat([before, answer], dim=1) if before.shape[1] else answer
