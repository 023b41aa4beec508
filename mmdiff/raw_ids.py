"""Raw ids -> Canvas, for `model(input_ids=...)` and `generate`, which need no tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmdiff import positions
from mmdiff.canvas import Block, Canvas
from mmdiff.encoders.vision.patches import Patching
from mmdiff.encoders.vision.tiles import Tiling, grid_of
from mmdiff.errors import InputError
from mmdiff.images import load_image
from mmdiff.processing import PLACEHOLDER, part_picture, place

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel


def canvas_from_ids(
    model: MMDiffModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    pixel_values: Any = None,
    writable: Tensor | None = None,
    image_sizes: Any = None,
    image_grid_thw: Any = None,
) -> Canvas:
    """A Canvas of raw ids (B, L), all given; image placeholders are expanded here.

    `pixel_values` as in `read_pictures`. `writable` marks the answer cells (block 1) and fits the
    expanded length.
    """
    ids, valid = input_ids, attention_mask
    valid = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid.bool()
    if valid.shape != ids.shape:
        raise InputError(
            f"attention_mask {tuple(valid.shape)} and input_ids {tuple(ids.shape)} differ in shape"
        )
    if ids.numel() == 0:
        raise InputError("input_ids are empty; give at least one id per row")
    image_id, pixels, blocks = model.config.image_token_id, None, None
    if pixel_values is not None:
        if image_id is None:
            raise InputError("this model takes no pictures; leave pixel_values out")
        pixels, blocks = read_pictures(model, pixel_values, image_sizes, image_grid_thw)
    if (ids == PLACEHOLDER).any():
        if pixels is None:
            raise InputError(f"input_ids hold {PLACEHOLDER} for pictures, but no pixel_values came")
        ids, valid = _expand_raw(model, ids, valid, blocks)
    known = ids[ids != image_id] if pixels is not None else ids
    if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < model.rows:
        raise InputError("input_ids hold an id outside the vocabulary")
    zeros = torch.zeros_like(ids)
    answer = torch.zeros_like(valid) if writable is None else writable.bool()
    if answer.shape != ids.shape:
        raise InputError(
            f"writable {tuple(answer.shape)} and expanded ids {tuple(ids.shape)} differ in shape"
        )
    canvas = Canvas(
        ids=ids,
        masked=torch.zeros_like(answer),
        writable=answer,
        valid=valid,
        block=answer.long(),
        segment=zeros,
        copy=zeros,
        position=(valid.long().cumsum(1) - 1).clamp(min=0),
        prompt_length=ids.shape[1],
    )
    if pixels is not None:
        count = len(pixels) if blocks is None else len(blocks)
        expected = count * model.image_tokens if blocks is None else sum(b.cells for b in blocks)
        found = int(((ids == image_id) & valid & ~answer).sum())
        if found != expected:
            raise InputError(
                f"{count} pictures fill {expected} cells, but input_ids hold {found} image cells"
            )
        canvas.features = place(canvas, image_id, pixels, range(count), blocks)
    if model.config.picture_apart:
        part_picture(canvas)
    if model.three_axes:
        canvas.position = positions.of_canvas(canvas)
    return canvas


def read_pictures(
    model: MMDiffModel, pictures: Any, sizes: Any = None, grids: Any = None
) -> tuple[Tensor, list[Block] | None]:
    """Pixel values (n, 3, H, W), and the pictures' blocks where the model tiles them.

    `pictures` is such a tensor; or, for a model that tiles, a list of pictures or of lists of them
    (one per row): PIL, (H, W, 3) uint8 arrays, or their tiles (n, 3, H, W) with the original
    (width, height) in `sizes`. A model that takes any size also reads the patches of all pictures
    with their `grids` (`Patching.blocks`).
    """
    if grids is not None:
        if not isinstance(model.tiling, Patching) or not isinstance(pictures, Tensor):
            raise InputError("image_grid_thw goes with patches, which this model does not read")
        return pictures.to(model.device), model.tiling.blocks(pictures, grids)
    if model.tiling is None:
        if not isinstance(pictures, Tensor) or pictures.dim() != 4:
            raise InputError("pixel_values must be a tensor (n, 3, H, W) for this model")
        return pictures, None
    flat = list(_flat(pictures))
    given = [(int(width), int(height)) for width, height in sizes] if sizes is not None else []
    tiles, blocks = [], []
    for number, picture in enumerate(flat):
        if isinstance(picture, Tensor) and picture.is_floating_point():
            if isinstance(model.tiling, Patching):
                raise InputError("patches need image_grid_thw: frames, rows, columns per picture")
            if number >= len(given):
                raise InputError("tiles need image_sizes: (width, height) of every picture")
            size = given[number]
            pixels = picture.view(-1, *picture.shape[-3:])
            grid = grid_of(size, model.tiling)
        else:
            cut_up = model.tiling.cut(load_image(_array(picture)).image)
            pixels, grid, size = cut_up.pixels.to(model.device), cut_up.grid, cut_up.size
        block = Block(grid, size, model.cells_of(size))
        if isinstance(model.tiling, Tiling) and len(pixels) != block.tiles:
            raise InputError(
                f"picture {number} of size {size} has {len(pixels)} tiles, not {block.tiles}"
            )
        tiles.append(pixels)
        blocks.append(block)
    return torch.cat(tiles), blocks


def _flat(pictures: Any) -> Iterator[Any]:
    """The pictures of nested lists in order; a tensor (n, tiles, 3, H, W) is a list too."""
    if isinstance(pictures, Tensor) and pictures.dim() == 5:
        pictures = list(pictures)
    if not isinstance(pictures, (list, tuple)):
        yield pictures
        return
    for picture in pictures:
        yield from _flat(picture)


def _array(picture: Any) -> Any:
    return picture.cpu().numpy() if isinstance(picture, Tensor) else picture


def _expand_raw(
    model: MMDiffModel, ids: Tensor, valid: Tensor, blocks: list[Block] | None
) -> tuple[Tensor, Tensor]:
    """Placeholders become the picture's cells; shorter rows are padded on the left."""
    number = 0
    rows = []
    for row_ids, row_valid in zip(ids.tolist(), valid.tolist(), strict=True):
        out: list[tuple[int, bool]] = []
        for i, ok in zip(row_ids, row_valid, strict=True):
            if i != PLACEHOLDER:
                out.append((i, ok))
                continue
            if blocks is not None and number >= len(blocks):
                raise InputError(
                    f"input_ids hold more {PLACEHOLDER} than the {len(blocks)} pictures"
                )
            cells = model.image_tokens if blocks is None else blocks[number].cells
            out += [(model.config.image_token_id, ok)] * cells
            number += 1
        rows.append(out)
    longest = max(map(len, rows))
    padded = [[(0, False)] * (longest - len(r)) + r for r in rows]
    both = torch.tensor(padded, device=ids.device)
    return both[..., 0].long(), both[..., 1].bool()


def left_padded(prompt: Canvas) -> Canvas:
    """The same cells with every row's padding moved to its left."""
    length = prompt.shape[1]
    order = prompt.valid.long().argsort(dim=1, stable=True)
    columns: dict[str, Any] = {
        f.name: value.gather(-1, order.expand_as(value))
        for f in fields(prompt)
        if isinstance(value := getattr(prompt, f.name), Tensor)
    }
    features = prompt.features
    if features is not None:
        row, cell = features.cells // length, features.cells % length
        features = replace(features, cells=row * length + order.argsort(dim=1)[row, cell])
    return replace(prompt, features=features, **columns)


def extend_canvas(prompt: Canvas, draft: Tensor, mask_id: int) -> Canvas:
    """A prompt canvas with an answer region of `draft` ids (B, N) behind it."""
    length = prompt.shape[1]
    holes = draft == mask_id
    position = prompt.position
    last = position.masked_fill(~prompt.valid, -1).amax(-1, keepdim=True)
    if position.dim() == 3:  # text behind a picture goes on from its largest number on any axis
        last = last.amax(0, keepdim=True).expand(3, -1, -1)
    steps = torch.arange(1, draft.shape[1] + 1, device=draft.device)
    zeros = torch.zeros_like(draft)
    joined = {
        "ids": (prompt.ids, draft),
        "masked": (prompt.masked, holes),
        "writable": (prompt.writable, holes),
        "valid": (prompt.valid, torch.ones_like(holes)),
        "block": (prompt.block, zeros + 1),
        "segment": (prompt.segment, prompt.segment[:, -1:].expand_as(draft)),
        "copy": (prompt.copy, zeros),
        "position": (position, last + steps),
    }
    features = prompt.features
    if features is not None:
        width = length + draft.shape[1]
        cells = features.cells // length * width + features.cells % length
        features = replace(features, cells=cells)
    tensors: dict[str, Any] = {name: torch.cat(pair, dim=-1) for name, pair in joined.items()}
    return replace(prompt, features=features, prompt_length=length, **tensors)
