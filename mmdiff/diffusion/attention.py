"""Who may look at whom: one rule for every attention layout.

A query sees a key when the key is valid, lies in its segment (or in segment 0, shared by all) and
copy (or is clean, copy 0), and the layout agrees:

* full: always;
* causal: keys of no later column;
* block: clean keys of no later block; for a noisy query, clean keys of strictly earlier blocks and
  its own copy of its own block (BD3-LM's mask, arXiv:2503.09573 §3.2);
* causal_block: as block, and within its own copy no later column (I-DLM, arXiv:2604.11035);
* prefix: as block with all answer cells in one block, so the prompt never sees the answer
  (LaViDa's prefix layout, arXiv:2505.16839 §3.2) and its keys and values can be kept exactly.

A prompt of blocks 0, -1, ... is block-causal, too, under prefix and block: `processing.turn_blocks`
numbers the turns of a conversation so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.errors import SettingError

LAYOUTS = ("full", "causal", "prefix", "block", "causal_block")

# exp(-6e4) is exactly 0 in every float type and -6e4 is finite in every one, so autocast to a
# narrower type cannot turn a padded row into NaN as the type's own minimum would.
HIDDEN = -6e4


@dataclass(frozen=True)
class Cells:
    """What attention needs to know of some columns of a canvas; each tensor (B, n)."""

    block: Tensor
    segment: Tensor
    copy: Tensor
    valid: Tensor
    column: Tensor  # (n,), or (B, n) where rows show different columns

    @classmethod
    def of(cls, canvas: Canvas, start: int = 0, stop: int | None = None) -> Cells:
        columns = slice(start, stop)
        numbers = torch.arange(canvas.ids.shape[1], device=canvas.device)
        return cls(
            canvas.block[:, columns],
            canvas.segment[:, columns],
            canvas.copy[:, columns],
            canvas.valid[:, columns],
            numbers[columns],
        )

    @classmethod
    def at(cls, canvas: Canvas, columns: Tensor) -> Cells:
        """Columns (B, n) of each row's own."""
        return cls(
            canvas.block.gather(1, columns),
            canvas.segment.gather(1, columns),
            canvas.copy.gather(1, columns),
            canvas.valid.gather(1, columns),
            columns,
        )


def allowed(query: Cells, key: Cells, layout: str) -> Tensor:
    """(B, Q, K) bool: may query cell q look at key cell k?

    The result never depends on ids or on which cells are masked. Raises SettingError for an unknown
    layout.
    """
    if layout not in LAYOUTS:
        raise SettingError(f"attention layout {layout!r} is unknown; choose one of {LAYOUTS}")
    segment_q, segment_k = query.segment[:, :, None], key.segment[:, None, :]
    copy_q, copy_k = query.copy[:, :, None], key.copy[:, None, :]
    same_copy = copy_k == copy_q
    see = key.valid[:, None, :] & ((segment_k == 0) | (segment_k == segment_q))
    if layout == "full":
        return see & (same_copy | (copy_k == 0))
    if layout == "causal":
        return see & (same_copy | (copy_k == 0)) & (key.column <= query.column[..., None])
    block_q, block_k = query.block[:, :, None], key.block[:, None, :]
    if layout == "prefix":
        block_q, block_k = block_q.clamp(max=1), block_k.clamp(max=1)
    own = same_copy & torch.where(copy_q == 0, block_k <= block_q, block_k == block_q)
    if layout == "causal_block":
        own = own & (key.column <= query.column[:, None])
    earlier_clean = (copy_k == 0) & (copy_q > 0) & (block_k < block_q)
    return see & (own | earlier_clean)


def in_parts(canvas: Canvas, layout: str) -> Tensor:
    """(B, n, W, S + W) bool: `allowed` of a canvas in n `parts` of W columns behind S shared ones.

    Each part's cells as queries, the shared cells and the part's own as keys; shared cells see all
    shared ones. Raises SettingError where the canvas or the layout has not this shape.
    """
    assert canvas.parts is not None
    rows, length = canvas.shape
    shared, width = canvas.parts
    count, rest = divmod(length - shared, width)
    front = Cells.of(canvas, 0, shared)
    if rest or layout not in ("prefix", "full") or not bool(allowed(front, front, layout).all()):
        raise SettingError(
            f"attention in parts needs layout prefix or full, {shared} shared cells that all see "
            f"each other and parts of {width}; this canvas has {length} columns, layout {layout}"
        )

    def own(tensor: Tensor) -> Tensor:
        return tensor[:, shared:].reshape(rows * count, width)

    def every(tensor: Tensor) -> Tensor:
        return torch.cat([tensor[:, :shared].repeat_interleave(count, 0), own(tensor)], 1)

    def cells(take: Callable[[Tensor], Tensor], columns: Tensor) -> Cells:
        block, segment, copy = map(take, (canvas.block, canvas.segment, canvas.copy))
        return Cells(block, segment, copy, take(canvas.valid), columns)

    columns = torch.arange(shared + width, device=canvas.device)
    query, key = cells(own, columns[shared:]), cells(every, columns)
    return allowed(query, key, layout).view(rows, count, width, shared + width)


def additive(see: Tensor, dtype: torch.dtype) -> Tensor | None:
    """(B, 1, Q, K) float mask: 0 where allowed, HIDDEN elsewhere; (B, n, W, K) of parts.

    None when everything is allowed, so that fast kernels run. A boolean mask would leak under eager
    attention, which adds it as 0 and 1. Padded queries that see nothing stay finite.
    """
    if see.dim() == 3 and bool(see.all()):
        return None
    mask = torch.zeros(see.shape, dtype=dtype, device=see.device).masked_fill(~see, HIDDEN)
    return mask[:, None] if see.dim() == 3 else mask
