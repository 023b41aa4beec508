"""Caches that recompute a window of cells per step and keep all other keys and values.

All but `block` are approximate: what a kept cell would say now may differ from what it said when
its keys were stored. Windows differ from row to row, so rows stay independent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.backbone import KeyValueCache
from mmdiff.canvas import Canvas
from mmdiff.decoding.cache import CACHES, Cache
from mmdiff.decoding.settings import PLAIN, Decoding, check_beside, whole
from mmdiff.errors import SettingError

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel


class Windows(Cache):
    """Every row's first step in a block feeds its whole canvas; `window` says what later ones do.

    `block` (b,) is the block of a row's last step, `taken` (b,) its steps there before this one,
    `before` (b, L) what was masked when that last step began.
    """

    anew: ClassVar[bool] = True  # in every block; False: in a row's first one alone

    def __init__(self, model: MMDiffModel, canvas: Canvas, settings: Decoding = PLAIN) -> None:
        self.model = model
        self.prompt = model.embed(canvas)[:, : canvas.prompt_length]
        pictured = torch.zeros_like(canvas.valid).flatten()
        if canvas.features is not None:
            pictured[canvas.features.cells] = True
        self.pictured = pictured.view_as(canvas.valid)
        self.store = KeyValueCache(canvas.ids.shape[1])
        self.block = torch.full_like(canvas.ids[:, 0], -1)
        self.taken = torch.zeros_like(self.block)
        self.before = canvas.masked

    def window(self, canvas: Canvas, block: Tensor) -> Tensor:
        """(b, L) bool: cells to feed in a step inside `block` (b, 1); `taken` counts from 0."""
        raise NotImplementedError

    def fed(self, canvas: Canvas) -> Tensor:
        """(b, L) bool: what this step feeds beside the needed cells and those that score them."""
        block = canvas.open_block()
        self.taken = torch.where(block[:, 0] == self.block, self.taken + 1, 0)
        first = self.taken == 0 if self.anew else self.block < 0
        self.block = block[:, 0]
        fed = self.window(canvas, block) | first[:, None]
        self.before = canvas.masked
        return fed

    def score(self, canvas: Canvas, need: Tensor) -> Tensor:
        row, cell = self.model.scoring(need)
        fed = self.fed(canvas) | need
        fed[row, cell] = True
        place = fed.long().cumsum(1) - 1
        hidden = self.prompt.new_zeros(len(fed), int(fed.sum(1).max()), self.prompt.shape[2])
        for rows, columns, made in self.compute(canvas, fed):
            hidden[rows, : columns.shape[1]] = made
        return self.model.head(hidden[row, place[row, cell]])

    def compute(self, canvas: Canvas, fed: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows (r,) that feed equally many cells (b, L) bool, these columns (r, Q), and their new
        hidden states (r, Q, D)."""
        counts = fed.sum(1)
        for count in counts.unique().tolist():
            rows = (counts == count).nonzero()[:, 0]
            columns = fed[rows].nonzero()[:, 1].view(len(rows), count)
            self.total += 1
            yield rows, columns, self._hidden(canvas, rows, columns)

    def _hidden(self, canvas: Canvas, rows: Tensor, columns: Tensor) -> Tensor:
        embeds = self.model.get_input_embeddings()(canvas.ids[rows[:, None], columns])
        pictured = self.pictured[rows[:, None], columns]
        if bool(pictured.any()):  # all other cells as they stand: compat=sdar changes given ones
            prompt = self.prompt[rows[:, None], columns.clamp(max=self.prompt.shape[1] - 1)]
            embeds = torch.where(pictured[..., None], prompt, embeds)
        store = self.store.at(rows, columns, canvas.ids.shape[0])
        return self.model.hidden(canvas.select(rows), embeds, cache=store, columns=columns)

    def select(self, rows: Tensor) -> None:
        self.prompt, self.pictured = self.prompt[rows], self.pictured[rows]
        self.before = self.before[rows]
        self.block, self.taken = self.block[rows], self.taken[rows]
        self.store.select(rows)


@CACHES.register("suffix")
class Suffix(Windows):
    """The open block and all behind it are recomputed, what lies before it is kept (Fast-dLLM's
    prefix cache, arXiv:2505.22618, v1/llada/generate.py)."""

    def window(self, canvas: Canvas, block: Tensor) -> Tensor:
        return canvas.block >= block


@CACHES.register("prefill")
class Prefill(Windows):
    """The answer and the prompt's last cell are recomputed; the prompt's other cells stay as they
    were when they saw the masked answer (Dimple's prefilling, `generation_utils.py`)."""

    def window(self, canvas: Canvas, block: Tensor) -> Tensor:
        columns = torch.arange(canvas.shape[1], device=canvas.device)
        return (columns >= canvas.prompt_length - 1).expand(canvas.shape)


@CACHES.register("freeze")
class Freeze(Windows):
    """As `suffix`, but what lies before the open block is never computed again: the prompt keeps
    the keys of its first call, and a finished block those of its own time (FreeCache,
    arXiv:2505.21467, `generate_block_cached`).

    Cells that a block's last step decided are fed once more before they freeze. The published loop
    freezes them as they were fed, as masks.
    """

    anew = False

    def window(self, canvas: Canvas, block: Tensor) -> Tensor:
        return (canvas.block >= block) | self.before


@CACHES.register("dual")
class Dual(Windows):
    """Only the open block is recomputed; both sides of it are kept (Fast-dLLM's dual cache)."""

    def window(self, canvas: Canvas, block: Tensor) -> Tensor:
        return canvas.block == block


@CACHES.register("delayed")
class Delayed(Windows):
    """Masked cells and those decided in the step before are recomputed; all is every `reload` steps
    and in the second step of a block (dKV-Cache-Decode, arXiv:2505.15781)."""

    options: ClassVar[dict[str, float]] = {"reload": 8}

    def __init__(
        self, model: MMDiffModel, canvas: Canvas, settings: Decoding = PLAIN, reload: float = 8
    ) -> None:
        super().__init__(model, canvas)
        self.reload = whole("cache: reload", reload)

    def window(self, canvas: Canvas, block: Tensor) -> Tensor:
        again = (self.taken == 1) | (self.taken % self.reload == 0)
        return self.before | again[:, None]


@CACHES.register("greedy")
class Greedy(Delayed):
    """Only the cells to decide now, the `window` masked cells around each and those decided in the
    step before; all is every `reload` steps (dKV-Cache-Greedy, arXiv:2505.15781).

    The cells of a step are known before the model speaks, so the order must not ask it.
    """

    options: ClassVar[dict[str, float]] = {"reload": 2, "window": 4}
    needs: ClassVar[dict[str, str]] = {"accept": "schedule", "order": "random"}
    foreseen = True

    def __init__(
        self,
        model: MMDiffModel,
        canvas: Canvas,
        settings: Decoding = PLAIN,
        reload: float = 2,
        window: float = 4,
    ) -> None:
        known: dict[str, tuple[Any, ...]] = {
            "accept": ("schedule",),
            "order": ("random", "left_to_right"),
            "order_temperature": (0,),
            "remask": ("none",),
            "late": ((),),
            "compat": (None,),
        }
        check_beside("cache=greedy, which must know a step's cells beforehand,", settings, **known)
        super().__init__(model, canvas, settings, reload)
        self.around = whole("cache=greedy: window", window, least=0)

    def score(self, canvas: Canvas, need: Tensor) -> Tensor:
        self.now = need & canvas.masked
        return super().score(canvas, need)

    def window(self, canvas: Canvas, block: Tensor) -> Tensor:
        decided = self.before & ~canvas.masked
        beside = near(self.now, self.around - self.around // 2, self.around // 2) & canvas.masked
        return decided | beside | (self.taken % self.reload == 0)[:, None]


def near(cells: Tensor, left: int, right: int) -> Tensor:
    """(b, L) bool: these cells, and the `left` ones before and `right` ones behind each."""
    wide = F.pad(cells.to(torch.float32), (right, left))
    return F.max_pool1d(wide[:, None], left + right + 1, 1)[:, 0] > 0


@CACHES.register("block")
class Blocks(Windows):
    """Every block is stored once, when it is finished; a step feeds the open block alone.

    Exact, because under the block layout no finished cell sees a later block (SDAR `generate.py`,
    Fast-dLLM v2). The published loops spend one more call per block to store it; here a finished
    block rides along with the first step of the next one. The prompt's tail that does not fill a
    block belongs to the first open one.
    """

    def __init__(self, model: MMDiffModel, canvas: Canvas, settings: Decoding = PLAIN) -> None:
        layout = canvas.layout or model.config.attention_layout
        if layout != "block":
            raise SettingError(
                f"cache=block needs a checkpoint with block-causal attention, this one's is "
                f"{layout}; use cache=prefix or cache=none"
            )
        super().__init__(model, canvas)
        model.hidden(canvas, self.prompt, 0, canvas.prompt_length, self.store)
        self.block = torch.zeros_like(self.block)  # the last stored one

    def fed(self, canvas: Canvas) -> Tensor:
        current = canvas.open_block()
        cells = (canvas.block > self.block[:, None]) & (canvas.block <= current)
        self.block = current[:, 0] - 1
        return cells & canvas.valid
