"""Raw ids -> Canvas, for `model(input_ids=...)` and `generate`, which need no tokenizer."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmdiff.canvas import Canvas, Features
from mmdiff.errors import InputError
from mmdiff.processing import part_picture

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel

PLACEHOLDER = -200  # one per picture, as LLaVA's IMAGE_TOKEN_INDEX


def canvas_from_ids(
    model: MMDiffModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    pixel_values: Tensor | None = None,
    writable: Tensor | None = None,
) -> Canvas:
    """A Canvas of raw ids (B, L), all given; image placeholders are expanded here.

    `writable` marks the answer cells (block 1) and fits the expanded length.
    """
    ids, valid = input_ids, attention_mask
    valid = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid.bool()
    if valid.shape != ids.shape:
        raise InputError(
            f"attention_mask {tuple(valid.shape)} and input_ids {tuple(ids.shape)} differ in shape"
        )
    if ids.numel() == 0:
        raise InputError("input_ids are empty; give at least one id per row")
    if (ids == PLACEHOLDER).any():
        if pixel_values is None:
            raise InputError(f"input_ids hold {PLACEHOLDER} for pictures, but no pixel_values came")
        ids, valid = _expand_raw(model, ids, valid)
    if int(ids.max()) >= model.backbone.config.vocab_size or int(ids.min()) < 0:
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
    if pixel_values is not None:
        if model.config.image_token_id is None:
            raise InputError("this model takes no pictures; leave pixel_values out")
        image_cells = (ids == model.config.image_token_id) & valid
        cells = image_cells.flatten().nonzero()[:, 0]
        expected = pixel_values.shape[0] * model.image_tokens
        if cells.numel() != expected:
            raise InputError(
                f"{pixel_values.shape[0]} pictures fill {expected} cells, "
                f"but input_ids hold {cells.numel()} image cells"
            )
        source = torch.arange(cells.numel(), device=cells.device)
        canvas.features = Features(pixel_values, source, cells)
    if model.config.picture_apart:
        part_picture(canvas)
    return canvas


def _expand_raw(model: MMDiffModel, ids: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Placeholders become the picture's cells; shorter rows are padded on the left."""
    rows = []
    for row_ids, row_valid in zip(ids.tolist(), valid.tolist(), strict=True):
        out: list[tuple[int, bool]] = []
        for i, ok in zip(row_ids, row_valid, strict=True):
            if i == PLACEHOLDER:
                out += [(model.config.image_token_id, ok)] * model.image_tokens
            else:
                out.append((i, ok))
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
        f.name: value.gather(1, order)
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
    end = prompt.valid.long().sum(1, keepdim=True)
    steps = torch.arange(draft.shape[1], device=draft.device)
    zeros = torch.zeros_like(draft)
    joined = {
        "ids": (prompt.ids, draft),
        "masked": (prompt.masked, holes),
        "writable": (prompt.writable, holes),
        "valid": (prompt.valid, torch.ones_like(holes)),
        "block": (prompt.block, zeros + 1),
        "segment": (prompt.segment, prompt.segment[:, -1:].expand_as(draft)),
        "copy": (prompt.copy, zeros),
        "position": (prompt.position, end + steps),
    }
    features = prompt.features
    if features is not None:
        width = length + draft.shape[1]
        cells = features.cells // length * width + features.cells % length
        features = replace(features, cells=cells)
    tensors: dict[str, Any] = {name: torch.cat(pair, dim=1) for name, pair in joined.items()}
    return replace(prompt, features=features, prompt_length=length, **tensors)
