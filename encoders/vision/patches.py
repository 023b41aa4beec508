"""A picture of any size as the patches of a Qwen2-VL tower, and how many cells it fills.

The picture is resized so that its sides are multiples of a merged patch (`patch` x `merge` pixels)
and its area lies within bounds; formulas and rounding are those of transformers'
``models/qwen2_vl/image_processing_pil_qwen2_vl.py``. Sizes are (width, height) in pixels, grids
(columns, rows) of cells, one per merged patch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import ceil, floor, isqrt, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmdiff.canvas import Block
from mmdiff.encoders.vision.base import check_keys
from mmdiff.encoders.vision.tiles import Size, Tiles, Tiling, resized
from mmdiff.errors import CheckpointError, InputError, SettingError

PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Patching:
    """How pictures become patches; the defaults are Qwen2-VL's."""

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    patch: int = 14
    merge: int = 2  # a cell is merge x merge patches
    frames: int = 2  # a patch is this often repeated: the tower's time axis
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    resample: str = "bicubic"

    def __post_init__(self) -> None:
        if min(self.patch, self.merge, self.frames, self.min_pixels) < 1:
            raise SettingError("patching: patch, merge, frames and min_pixels must be at least 1")
        if self.max_pixels < max(self.min_pixels, self.side**2):
            raise SettingError(
                f"patching: max_pixels={self.max_pixels} is below min_pixels or the "
                f"{self.side**2} pixels of one cell"
            )

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Patching:
        """From the dict that JSON made of one; raises SettingError for an unknown key."""
        check_keys(settings, [f.name for f in fields(cls)], "patching")
        mean, std = (tuple(settings.get(k, getattr(cls, k))) for k in ("mean", "std"))
        return cls(**(settings | {"mean": mean, "std": std}))

    @property
    def side(self) -> int:
        """Pixels along a cell."""
        return self.patch * self.merge

    @property
    def most(self) -> int:
        """Cells of the largest picture."""
        return self.max_pixels // self.side**2

    @property
    def width(self) -> int:
        """Values of one patch."""
        return 3 * self.frames * self.patch**2

    def grid(self, size: Size) -> Size:
        """(columns, rows) of the cells of a picture; about its own area, within the bounds."""
        area, side = size[0] * size[1], self.side
        columns, rows = (round(length / side) for length in size)  # 0 for a short side
        if columns * rows * side**2 > self.max_pixels:
            shrink = sqrt(area / self.max_pixels)
            columns, rows = (max(1, floor(length / shrink / side)) for length in size)
        elif columns * rows * side**2 < self.min_pixels:
            grow = sqrt(self.min_pixels / area)
            columns, rows = (ceil(length * grow / side) for length in size)
        return columns, rows

    def count(self, size: Size, side: int = 0) -> int:
        """Cells of a picture of `size`; `side` is of no account, as the patches are not tiles."""
        columns, rows = self.grid(size)
        return columns * rows

    def cut(self, image: Image.Image) -> Tiles:
        """The patches (n, `width`) of an RGB picture, cell by cell, and its grid."""
        columns, rows = grid = self.grid(image.size)
        how = Image.Resampling[self.resample.upper()]
        pixels = resized(image, (columns * self.side, rows * self.side), how)
        values = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (self.mean, self.std))
        split = ((values - mean) / std).view(
            3, rows, self.merge, self.patch, columns, self.merge, self.patch
        )
        # (rows, columns, merge, merge, 3, patch, patch), each patch then once per frame
        patches = split.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5)
        patches = patches.expand(*patches.shape[:5], self.frames, self.patch, self.patch)
        return Tiles(patches.reshape(-1, self.width), grid, image.size)

    def blocks(self, patches: Tensor, grids: Any) -> list[Block]:
        """The pictures of ready patches (n, `width`) with `grids` (pictures, 3): frames, rows and
        columns of patches, as published processors give them (image_grid_thw)."""
        if patches.dim() != 2 or patches.shape[1] != self.width:
            raise InputError(
                f"pixel_values {tuple(patches.shape)} must be patches (n, {self.width})"
            )
        made = []
        for time, high, wide in torch.as_tensor(grids).tolist():
            if time != 1 or high % self.merge or wide % self.merge or min(high, wide) < 1:
                raise InputError(
                    f"image_grid_thw: {[time, high, wide]} is no picture; give [1, rows, columns] "
                    f"of patches, both multiples of {self.merge}"
                )
            grid = wide // self.merge, high // self.merge
            made.append(Block(grid, (wide * self.patch, high * self.patch), grid[0] * grid[1]))
        if sum(block.cells for block in made) * self.merge**2 != len(patches):
            raise InputError(f"image_grid_thw does not fit the {len(patches)} patches given")
        return made

    def patch_grids(self, grids: Sequence[Size]) -> Tensor:
        """(pictures, 3) frames, rows and columns of patches, which the tower asks for."""
        shapes = [(1, rows * self.merge, columns * self.merge) for columns, rows in grids]
        return torch.tensor(shapes)

    def with_file(self, folder: Path) -> Patching:
        """With what the folder's preprocessor_config.json says, if it has one."""
        path = folder / PREPROCESSOR
        if not path.is_file():
            return self
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            size = said.get("size") or {}
            found = {
                "min_pixels": said.get("min_pixels", size.get("shortest_edge")),
                "max_pixels": said.get("max_pixels", size.get("longest_edge")),
                "mean": tuple(said["image_mean"]) if said.get("image_mean") else None,
                "std": tuple(said["image_std"]) if said.get("image_std") else None,
            }
            return replace(self, **{k: v for k, v in found.items() if v is not None})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error!r})") from None


def cells_of(size: Size, cutting: Tiling | Patching | None, tokens: int) -> int:
    """Canvas cells that a picture of `size` fills, with `tokens` per tile, or in all if uncut."""
    return tokens if cutting is None else cutting.count(size, isqrt(tokens))


def read_cutting(settings: dict[str, Any]) -> Tiling | Patching:
    """How a model cuts pictures, from the dict that JSON made of either."""
    return Patching.of(settings) if "max_pixels" in settings else Tiling.of(settings)
