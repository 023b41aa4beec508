"""The keys and values of finished blocks: block-by-block decoding of block-causal checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmdiff.backbone import KeyValueCache
from mmdiff.canvas import Canvas
from mmdiff.decoding.cache import CACHES
from mmdiff.errors import SettingError

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel


class PlacedKeys(KeyValueCache):
    """Keys and values that each row writes at columns of its own; one column more than the canvas
    takes what fills up shorter rows, and is never read."""

    columns: Tensor | None = None  # (B, Q); None: a window, as the prompt

    def __init__(self, length: int) -> None:
        super().__init__(length + 1)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object) -> tuple[Tensor, Tensor]:
        if self.columns is None:
            return super().update(keys, values, layer)
        for kept, new in ((self.keys[layer], keys), (self.values[layer], values)):
            kept.scatter_(2, self.columns[:, None, :, None].expand_as(new), new)
        return self.keys[layer][:, :, : self.stop], self.values[layer][:, :, : self.stop]


@CACHES.register("block")
class BlockCache:
    """Every block is stored once, when it is finished; a step feeds the open block alone.

    Exact, because under the block layout no finished cell sees a later block (SDAR `generate.py`,
    Fast-dLLM v2). The published loops spend one more call per block to store it; here a finished
    block rides along with the first step of the next one. The prompt's tail that does not fill a
    block belongs to the first open one. Rows may stand at different blocks.
    """

    calls = 1
    start = 0  # any cell may belong to an open block

    def __init__(self, model: MMDiffModel, canvas: Canvas) -> None:
        layout = canvas.layout or model.config.attention_layout
        if layout != "block":
            raise SettingError(
                f"cache=block needs a checkpoint with block-causal attention, this one's is "
                f"{layout}; use cache=prefix or cache=none"
            )
        self.model = model
        rows, length = canvas.shape
        self.store = PlacedKeys(length)
        self.embeds = model.embed(canvas)[:, : canvas.prompt_length]
        self.pictured = torch.zeros(rows * length, dtype=torch.bool, device=canvas.device)
        if canvas.features is not None:
            self.pictured[canvas.features.cells] = True
        self.pictured = self.pictured.view(rows, length)
        hidden = model.hidden(canvas, self.embeds, 0, canvas.prompt_length, self.store)
        # The newest hidden state of every cell: a shifted checkpoint scores a block's first cell
        # from the last one of the block before.
        self.hidden = hidden.new_zeros(rows, length + 1, hidden.shape[2])
        self.hidden[:, : canvas.prompt_length] = hidden
        self.stored = torch.zeros_like(canvas.block[:, :1])  # (B, 1): the last stored block

    def score(self, canvas: Canvas, need: Tensor) -> Tensor:
        current = canvas.open_block()
        cells = canvas.valid & (canvas.block > self.stored) & (canvas.block <= current)
        order = cells.long().argsort(dim=1, descending=True, stable=True)
        columns = order[:, : int(cells.sum(1).max())]
        self.store.columns = torch.where(cells.gather(1, columns), columns, canvas.shape[1])
        hidden = self.model.hidden(
            canvas, self._words(canvas, columns), cache=self.store, columns=columns
        )
        place = self.store.columns[:, :, None].expand_as(hidden)
        self.hidden.scatter_(1, place, hidden)
        self.stored = current - 1
        return self.model.head(self.model.pick(self.hidden, need))

    def _words(self, canvas: Canvas, columns: Tensor) -> Tensor:
        """(B, Q, D) embeddings of the cells at `columns` (B, Q) as they stand, pictures painted."""
        words: Tensor = self.model.get_input_embeddings()(canvas.ids.gather(1, columns))
        pictured = self.pictured.gather(1, columns)
        if not bool(pictured.any()):
            return words
        inside = columns.clamp(max=self.embeds.shape[1] - 1)[:, :, None].expand_as(words)
        return torch.where(pictured[:, :, None], self.embeds.gather(1, inside), words)

    def select(self, rows: Tensor) -> None:
        self.store.select(rows)
        self.embeds, self.pictured = self.embeds[rows], self.pictured[rows]
        self.hidden, self.stored = self.hidden[rows], self.stored[rows]
