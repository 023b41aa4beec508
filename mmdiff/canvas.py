"""The Canvas: a batch of token rows, some cells given, some to be filled.

Everything flows through this one dataclass: processing makes it, the model reads it, corruption and
decoding change which cells are `masked`. Shapes: B rows, L cells, P prompt columns.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """The visual tokens of one picture: `grid` (columns, rows) of its tiles or None for one tile,
    of its cells where the encoder takes any size; original `size` (width, height) in pixels, canvas
    `cells` it fills."""

    grid: tuple[int, int] | None
    size: tuple[int, int]
    cells: int

    @property
    def tiles(self) -> int:
        columns, rows = self.grid or (0, 0)
        return 1 + columns * rows


@dataclass
class Features:
    """What an encoder paints: raw inputs, and the flat cells that its output tokens fill.

    `pixel_values` (n, 3, H, W), or patches (n, values); `source` (K,) indexes the flattened visual
    tokens of all pictures and `cells` (K,) the flattened (B * L) canvas. Two cells may share one
    source, so that several rows look at one encoded picture. `blocks` are the pictures' where these
    fill unequal numbers of cells.
    """

    pixel_values: Tensor
    source: Tensor
    cells: Tensor
    blocks: list[Block] | None = None

    def to(self, device: torch.device | str) -> Features:
        return Features(
            self.pixel_values.to(device),
            self.source.to(device),
            self.cells.to(device),
            self.blocks,
        )


@dataclass
class Canvas:
    """A padded batch of rows; every tensor is (B, L) unless said.

    `masked` is never inferred from ids: a mask token that a user typed is plain text.
    """

    ids: Tensor  # long; the mask id stands in masked cells
    masked: Tensor  # bool: still noise
    writable: Tensor  # bool: the decoder (or the corruption) may write here
    valid: Tensor  # bool: not padding
    block: Tensor  # 0 (or less) prompt, 1.. answer blocks
    segment: Tensor  # 0 shared by all, 1.. packed examples
    copy: Tensor  # 0 clean, 1 and 2 the halves of a complementary pair
    position: Tensor  # rotary positions; (3, B, L) for time, row and column (M-RoPE)
    layout: str | None = None  # attention layout, where it is not the model's own
    prompt_length: int = 0  # P: columns [0, P) hold prompts, left padded; 0 in packed rows
    features: Features | None = None
    parts: tuple[int, int] | None = (
        None  # (S, W): behind the S shared columns no W columns see others
    )

    @property
    def shape(self) -> tuple[int, int]:
        rows, length = self.ids.shape
        return rows, length

    @property
    def device(self) -> torch.device:
        return self.ids.device

    @property
    def place(self) -> Tensor:
        """(B, L) `position`; of three axes the first, time."""
        return self.position if self.position.dim() == 2 else self.position[0]

    def to(self, device: torch.device | str) -> Canvas:
        """The same canvas with every tensor on `device`."""
        moved = {
            f.name: getattr(self, f.name).to(device)
            for f in fields(self)
            if isinstance(getattr(self, f.name), (Tensor, Features))
        }
        return replace(self, **moved)

    def select(self, rows: Tensor) -> Canvas:
        """The given rows (a long index) without features: those belong to the whole batch."""
        picked = {
            f.name: getattr(self, f.name)[..., rows, :]
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, features=None, **picked)

    def open_block(self) -> Tensor:
        """(B, 1): each row's earliest block with a masked cell; one beyond all where none is."""
        late = self.block.max() + 1
        return torch.where(self.masked, self.block, late).amin(1, keepdim=True)

    def open_cells(self) -> Tensor:
        """(B, L) bool: masked cells of the earliest block that still has any, row by row."""
        return self.masked & (self.block == self.open_block())

    def align_blocks(self, length: int) -> None:
        """Number blocks of `length` cells from each row's first cell on: that of the first answer
        cell, which the prompt's tail may begin, is 1, and the prompt's others are 0, -1, ..."""
        number = (self.valid.long().cumsum(1) - 1).clamp(min=0) // length
        first = torch.where(self.block > 0, number, number.max()).amin(1, keepdim=True)
        self.block = number - first + 1

    def write(self, tokens: Tensor, accept: Tensor) -> None:
        """Put `tokens` (B, L) into the accepted cells (B, L), which must be open ones."""
        self.ids = torch.where(accept, tokens, self.ids)
        self.masked = self.masked & ~accept


def set_blocks(canvas: Canvas, block_length: int | None, aligned: bool = False) -> None:
    """Number the answer cells' blocks 1, 2, ... from the left of the answer region, or, `aligned`,
    all cells' from the left of the row (Canvas.align_blocks)."""
    if block_length is None:
        return
    if aligned:
        canvas.align_blocks(block_length)
        return
    answer = canvas.block > 0
    offset = answer.long().cumsum(1) - 1
    canvas.block = torch.where(answer, offset // block_length + 1, canvas.block)
