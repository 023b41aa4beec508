"""Pictures from text: the codes of a picture are the holes, and a codec makes pixels of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmdiff.checkpoints.base import Pictures, pictures_of
from mmdiff.encoders.codes import Codec
from mmdiff.errors import InputError
from mmdiff.heads.base import require_text
from mmdiff.heads.look import codec_of, codes_of, use_codec

if TYPE_CHECKING:
    from PIL import Image

    from mmdiff.model import MMDiffModel


@dataclass
class GeneratedImage:
    """One picture, and its codes (h, w). `seconds` is its batch's wall time divided by the rows."""

    image: Image.Image
    codes: Tensor
    nfe: int
    seconds: float


@torch.inference_mode()
def paint(
    model: MMDiffModel,
    texts: Sequence[str],
    codec: Codec | str | Path | None,
    size: tuple[int, int] | None,
    **decoding: Any,
) -> list[GeneratedImage]:
    """A picture of `size` (height, width) for each text, in one batch."""
    began = time.perf_counter()
    pictures, processor = how(model), model.processor
    assert processor is not None
    if codec is not None:
        use_codec(model, codec)
    net = codec_of(model, pictures)
    grid = grid_of(size or pictures.size, net)
    first, count = codes_of(model, net)
    rows = [pictures.row(processor, require_text(text, "text"), grid) for text in texts]
    prompt, seen = padded([row.prompt for row in rows], model.device)
    negative, beside = padded([row.negative for row in rows], model.device)
    draft = torch.tensor([row.draft for row in rows], device=model.device)
    out: Any = model.generate(
        prompt,
        attention_mask=seen,
        draft_tokens=draft,
        suffix_ids=rows[0].suffix,
        negative_prompt_ids=negative,
        negative_prompt_attention_mask=beside,
        **{"codes": (first, count), "stop": "none", **pictures.decoding, **decoding},
    )
    made = out.sequences[:, prompt.shape[1] :][:, : draft.shape[1]]
    made = made[draft == processor.mask_id].view(len(rows), *grid) - first
    images = to_images(net.decode(made))
    seconds = (time.perf_counter() - began) / len(rows)
    return [
        GeneratedImage(image, codes.cpu(), int(nfe), seconds)
        for image, codes, nfe in zip(images, made, out.nfe, strict=True)
    ]


def how(model: MMDiffModel) -> Pictures:
    """How this model paints; raises InputError for one that does not."""
    pictures = pictures_of(model.config)
    if pictures is None or not model.config.codes:
        raise InputError("this model paints no pictures: it has no image codes")
    if model.processor is None:
        raise InputError("this checkpoint has no processor files; use generate(input_ids=...)")
    return pictures


def grid_of(size: tuple[int, int], codec: Codec) -> tuple[int, int]:
    """Rows and columns of codes of a picture; raises InputError for a size that does not divide."""
    height, width = size
    if min(size) < codec.factor or height % codec.factor or width % codec.factor:
        raise InputError(
            f"a picture of {height} x {width} pixels: both must be multiples of {codec.factor}"
        )
    return height // codec.factor, width // codec.factor


def padded(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (B, L) padded on the left with 0, and which are real (B, L)."""
    longest = max(map(len, rows))
    ids = [[0] * (longest - len(row)) + row for row in rows]
    seen = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(seen, device=device)


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Pictures of pixels (n, 3, H, W), about [-1, 1]."""
    from PIL import Image

    values = ((pixels.float() + 1) * 127.5).round().clamp(0, 255).byte()
    return [Image.fromarray(one.permute(1, 2, 0).cpu().numpy()) for one in values]
