"""A picture as square tiles, and the tokens of its tiles as one sequence.

The pipeline of LLaVA-NeXT ("anyres"), which LaViDa and LLaDA-V use. `cut` makes the tiles that a
vision encoder reads; from the projected tokens `merge` makes the visual tokens of the picture, and
`count` says beforehand how many. The formulas and their rounding are those of
``llava/mm_utils.py`` and ``llava/model/llava_arch.py``.

Sizes are (width, height) in pixels, grids (columns, rows) of tiles; maps of tokens (rows, columns).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import ceil, isqrt, sqrt
from operator import index
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmdiff.encoders.vision.base import check_keys
from mmdiff.errors import SettingError

ASPECTS = {"square": "squash", "pad": "pad", "anyres": "anyres"}  # published name -> ours
POOLS = ("bilinear", "average", "max")
# Two digits: no grid needs more, and a damaged file must not span millions.
SPAN = re.compile(r"\((\d{1,2})x(\d{1,2})\),(?:\S*,)?\((\d{1,2})x(\d{1,2})\)")
PAIR = r"[(\[](\d+),(\d+)[)\]]"
STRIP_ROWS = 256

Size = tuple[int, int]


@dataclass(frozen=True)
class Tiling:
    """How pictures become tiles and tokens.

    ``squash``: one tile, the picture stretched to a square. ``pad``: one tile, the picture amid a
    square of the mean colour. ``anyres``: the squashed picture, then the tiles of the picture amid
    the black pinpoint that suits it best.
    """

    size: int  # side of a tile, pixels
    aspect: str = "squash"
    pinpoints: tuple[Size, ...] = ()  # for anyres, pixels
    max_tiles: int | None = None  # a map of more tiles than these is shrunk bilinearly
    unpad: bool = False  # cuts what the padding became from the map
    rounded: bool = False  # ... after rounding to 7 digits, as transformers does and LLaVA does not
    newline: bool = False  # a learned vector behind every row of the map, or behind a single tile
    pool: str | None = None  # joins 2x2 tokens of each tile, after the projector
    resample: str = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    flat: bool = False  # tile after tile as they are, in place of one map of all

    def __post_init__(self) -> None:
        check("tiling: aspect", self.aspect, ASPECTS.values())
        check("tiling: pool", self.pool, (None, *POOLS))
        check("tiling: resample", self.resample, ("bicubic", "bilinear"))
        sides = [side for pinpoint in self.pinpoints for side in pinpoint]
        wrong = [side for side in sides if side < 1 or side % self.size]
        if wrong or (self.aspect == "anyres" and not sides):
            raise SettingError(
                f"tiling: pinpoints have {wrong[0] if wrong else 'no'} pixels; list pairs "
                f"(width, height) of multiples of {self.size}, the size of a tile"
            )

    @classmethod
    def of(cls, settings: dict) -> Tiling:
        """From the dict that JSON made of one; raises SettingError for an unknown key."""
        check_keys(settings, [f.name for f in fields(cls)], "tiling")
        pairs = tuple((int(w), int(h)) for w, h in settings.get("pinpoints", ()))
        mean, std = (tuple(settings.get(k, getattr(cls, k))) for k in ("mean", "std"))
        return cls(**(settings | {"pinpoints": pairs, "mean": mean, "std": std}))

    @classmethod
    def from_llava(cls, config: dict, size: int, *, pooled: bool) -> Tiling:
        """The tiling of a published LLaVA-style ``config.json`` and tiles of `size`.

        `pooled`: whether the model's code pools the tiles of pictures. LaViDa's does and LLaDA-V's
        does not, though both files name a mode. Raises SettingError for what cannot be read.
        """
        aspect = str(config.get("image_aspect_ratio") or "square")
        limit = re.fullmatch(r"anyres_max_([1-9]\d*)", aspect)
        aspect = "anyres" if limit else aspect
        check("image_aspect_ratio", aspect, (*ASPECTS, "anyres_max_<tiles>"))
        merging = config.get("mm_patch_merge_type") or "flat"
        check("mm_patch_merge_type", merging, ("flat", "spatial", "spatial_unpad"))
        unpad = merging == "spatial_unpad"  # the only type that reads the limit and has newlines
        points = config.get("image_grid_pinpoints")
        return cls(
            size,
            aspect=ASPECTS[aspect],
            pinpoints=read_pinpoints(points, size) if aspect == "anyres" else (),
            max_tiles=int(limit.group(1)) if limit and unpad else None,
            unpad=unpad,
            newline=unpad,
            pool=config.get("mm_spatial_pool_mode") or "bilinear" if pooled else None,
            flat=merging == "flat",
        )

    def cut(self, image: Image.Image) -> Tiles:
        """The tiles of an RGB picture."""
        return cut(image, self)

    def count(self, size: Size, side: int) -> int:
        """Visual tokens of a picture of `size`, with side x side projected tokens per tile."""
        return count(size, self, side)


@dataclass(frozen=True)
class Tiles:
    """`pixels` (n, 3, size, size), normalised, the whole picture first, or patches (n, values);
    `size` of the original."""

    pixels: Tensor
    grid: Size | None
    size: Size


def check(name: str, value: Any, known: Any) -> None:
    if value not in known:
        raise SettingError(f"{name} is {value!r}; use {' or '.join(map(str, known))}")


def read_pinpoints(value: Any, size: int) -> tuple[Size, ...]:
    """``image_grid_pinpoints`` in pixels: pairs, also as text, or the span "(1x1),...,(6x6)".

    A span means every grid from its first to its last, whatever it lists between them.
    """
    text = re.sub(r"\s", "", value) if isinstance(value, str) else ""
    if span := SPAN.fullmatch(text):
        left, top, right, bottom = map(int, span.groups())
        grids = [(c, r) for c in range(left, right + 1) for r in range(top, bottom + 1)]
        value = [(columns * size, rows * size) for columns, rows in grids]
    elif re.fullmatch(rf"[(\[]{PAIR}(,{PAIR})*,?[)\]]", text):
        value = [(int(width), int(height)) for width, height in re.findall(PAIR, text)]
    try:
        pairs = tuple((index(width), index(height)) for width, height in value)
    except (TypeError, ValueError):
        pairs = ()
    if not pairs:
        raise SettingError(
            f"image_grid_pinpoints {str(value)[:80]!r} cannot be read; use a list of [width, "
            'height] in pixels, or "(1x1),...,(6x6)" for all grids up to 6 x 6 (99 x 99 at most)'
        )
    return pairs


def best_resolution(size: Size, pinpoints: Sequence[Size]) -> Size:
    """The pinpoint that keeps most pixels, then the one that wastes least, then the first."""

    def rank(pinpoint: Size) -> tuple[int, int]:
        scale = min(pinpoint[0] / size[0], pinpoint[1] / size[1])
        kept = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return kept, kept - pinpoint[0] * pinpoint[1]

    return max(pinpoints, key=rank)


def grid_of(size: Size, tiling: Tiling) -> Size | None:
    """(columns, rows) of the tiles of a picture, None if it becomes one tile."""
    if tiling.aspect != "anyres":
        return None
    width, height = best_resolution(size, tiling.pinpoints)
    return width // tiling.size, height // tiling.size


def cut(image: Image.Image, tiling: Tiling) -> Tiles:
    """The tiles of an RGB picture."""
    side, grid = tiling.size, grid_of(image.size, tiling)
    how = Image.Resampling[tiling.resample.upper()]
    if tiling.aspect == "pad":
        pieces = [padded(image, side, tuple(int(255 * value) for value in tiling.mean), how)]
    else:
        pieces = [resized(image, (side, side), how)]
    if grid is not None:
        canvas = fitted(image, (grid[0] * side, grid[1] * side), how)
        corners = [(x * side, y * side) for y in range(grid[1]) for x in range(grid[0])]
        pieces += [canvas.crop((x, y, x + side, y + side)) for x, y in corners]
    values = torch.from_numpy(np.stack([np.asarray(piece) for piece in pieces]))
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (tiling.mean, tiling.std))
    return Tiles((values.permute(0, 3, 1, 2).float() / 255 - mean) / std, grid, image.size)


def resized(image: Image.Image, size: Size, how: Image.Resampling) -> Image.Image:
    """`Image.resize` with the passes in the order of Pillow 13, for equal pixels in all versions.

    Values are rounded between the two passes; older versions always go across first.
    """
    less_across, less_down = image.width - size[0], image.height - size[1]
    down_first = less_down > max(0, 2 * less_across)
    between = (image.width, size[1]) if down_first else (size[0], image.height)
    return image.resize(between, how).resize(size, how)


def padded(image: Image.Image, side: int, colour: Any, how: Image.Resampling) -> Image.Image:
    """The picture in the middle of a square, resized to `side`.

    The square of a long picture can be too large for memory. A square is resized across, then down,
    so strips of it that are resized across one by one give the same values.
    """
    width, height = image.size
    large = max(width, height)
    narrow = Image.new("RGB", (side, large), colour)
    for top in range(0, height, STRIP_ROWS):
        rows = min(STRIP_ROWS, height - top)
        strip = Image.new("RGB", (large, rows), colour)
        strip.paste(image.crop((0, top, width, top + rows)), ((large - width) // 2, 0))
        narrow.paste(strip.resize((side, rows), how), (0, (large - height) // 2 + top))
    return narrow.resize((side, side), how)


def fitted(image: Image.Image, target: Size, how: Image.Resampling) -> Image.Image:
    """The picture, its aspect kept, as large as fits, in the middle of a black `target`."""
    across, down = target[0] / image.width, target[1] / image.height
    if across < down:
        width, height = target[0], min(ceil(image.height * across), target[1])
    else:
        width, height = min(ceil(image.width * down), target[0]), target[1]
    canvas = Image.new("RGB", target)
    corner = (target[0] - width) // 2, (target[1] - height) // 2
    canvas.paste(resized(image, (width, height), how), corner)
    return canvas


def as_maps(tokens: Tensor) -> Tensor:
    """(n, T, D) -> (n, side, side, D)."""
    side = isqrt(tokens.shape[1])
    if side * side != tokens.shape[1]:
        raise SettingError(
            f"tiling: {tokens.shape[1]} tokens of a tile are no square; use an encoder whose are"
        )
    return tokens.unflatten(1, (side, side))


def pooled_side(side: int, mode: str | None) -> int:
    """The side of a tile's map after `pool`; None pools nothing."""
    check("tiling: pool", mode, (None, *POOLS))
    if mode is None:
        return side
    return ceil(side / 2) if mode == "bilinear" else max(1, side // 2)


def pool(tokens: Tensor, mode: str) -> Tensor:
    """2x2 tokens of a tile become one: (n, T, D) -> (n, pooled_side**2, D).

    An odd side loses its last row and column, unless bilinear.
    """
    cells = as_maps(tokens).permute(0, 3, 1, 2)
    small = pooled_side(cells.shape[2], mode)
    if mode == "bilinear":
        cells = F.interpolate(cells, size=(small, small), mode="bilinear")
    elif cells.shape[2] > 1:
        cells = F.avg_pool2d(cells, 2) if mode == "average" else F.max_pool2d(cells, 2)
    return cells.flatten(2).transpose(1, 2)


def margins(size: Size, rows: int, columns: int, tiling: Tiling) -> Size:
    """Padding in the map: rows above (as many below), columns left (as many right).

    At least one row or column stays; of a very long picture the published code may keep none.
    """
    width, height = size
    if not tiling.unpad:
        return 0, 0
    digits = 7 if tiling.rounded else 300  # more than a float has
    if width / height > columns / rows:
        return (rows - max(1, int(round(height * (columns / width), digits)))) // 2, 0
    return 0, (columns - max(1, int(round(width * (rows / height), digits)))) // 2


def shrunk(rows: int, columns: int, side: int, tiling: Tiling) -> Size:
    """The shape of the map within `max_tiles` maps of side x side; up to 1.1 times that passes."""
    times = sqrt(rows * columns / (tiling.max_tiles * side**2)) if tiling.max_tiles else 1
    if times <= 1.1:
        return rows, columns
    return max(1, int(rows // times)), max(1, int(columns // times))


def count(size: Size, tiling: Tiling, side: int) -> int:
    """The length of `merge` for a picture of `size`, with side x side projected tokens per tile."""
    side, grid = pooled_side(side, tiling.pool), grid_of(size, tiling)
    if grid is None:
        return side**2 + tiling.newline
    if tiling.flat:
        return side**2 * (1 + grid[0] * grid[1])
    rows, columns = grid[1] * side, grid[0] * side
    top, left = margins(size, rows, columns, tiling)
    rows, columns = shrunk(rows - 2 * top, columns - 2 * left, side, tiling)
    return side**2 + rows * (columns + tiling.newline)


def merge(
    tokens: Tensor, tiles_grid: Size | None, size: Size, tiling: Tiling, newline: Tensor | None
) -> Tensor:
    """Projected tokens (n, T, D) of one picture's tiles and `newline` (D,) -> (count, D).

    The tokens of the whole picture come first, then the map of all tiles row by row.
    """
    columns, rows = tiles_grid or (0, 0)
    assert len(tokens) == 1 + columns * rows, f"{len(tokens)} tiles for the grid {tiles_grid}"
    tokens = pool(tokens, tiling.pool) if tiling.pool else tokens
    if tiles_grid is None:
        return with_newline(tokens, tiling, newline)
    if tiling.flat:
        return tokens.flatten(0, 1)
    tiles = as_maps(tokens[1:]).unflatten(0, (rows, columns))
    cells = tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)  # (rows * side, columns * side, D)
    rows, columns, _ = cells.shape
    top, left = margins(size, rows, columns, tiling)
    cells = cells[top : rows - top, left : columns - left]
    shape = shrunk(rows - 2 * top, columns - 2 * left, tiles.shape[2], tiling)
    if shape != cells.shape[:2]:
        cells = F.interpolate(cells.permute(2, 0, 1)[None], size=shape, mode="bilinear")[0]
        cells = cells.permute(1, 2, 0)
    return torch.cat([tokens[0], with_newline(cells, tiling, newline)])


def with_newline(cells: Tensor, tiling: Tiling, newline: Tensor | None) -> Tensor:
    """A map (h, w, D) as (h*w, D), or (h*(w+1), D) with `newline` behind every row."""
    if not tiling.newline:
        return cells.flatten(0, 1)
    if newline is None:
        raise SettingError("tiling: newline is on, but no vector is given; give one or turn it off")
    return torch.cat([cells, newline.to(cells).expand(len(cells), 1, -1)], 1).flatten(0, 1)
