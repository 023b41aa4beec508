"""What codes are made of: a picture cropped to a size that a published project reads.

Sizes are (width, height) in pixels.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Size = tuple[int, int]
BICUBIC, BOX = Image.Resampling.BICUBIC, Image.Resampling.BOX


def middle(picture: Image.Image, size: Size) -> Image.Image:
    """The part of this size in the middle."""
    left, top = (round((have - want) / 2) for have, want in zip(picture.size, size, strict=True))
    return picture.crop((left, top, left + size[0], top + size[1]))


def square(picture: Image.Image, side: int) -> Image.Image:
    """The middle of a picture whose shorter side is made `side`: torchvision's Resize (bicubic) and
    CenterCrop, as MMaDA's `image_transform` uses them."""
    short = min(picture.size)
    width, height = (side if n == short else int(side * n / short) for n in picture.size)
    return middle(picture.resize((width, height), BICUBIC), (side, side))


@cache
def shapes(side: int, patch: int = 32, ratio: int = 4) -> tuple[Size, ...]:
    """Sizes of w x h patches that fill about as many pixels as a square of `side`, no side being
    more than `ratio` of the other: Lumina-DiMOO's `generate_crop_size_list`."""
    most = (side // patch) ** 2
    pairs = (
        (w, h) for w in range(1, most + 1) for h in range(max(1, most // (w + 1)), most // w + 1)
    )
    return tuple((w * patch, h * patch) for w, h in pairs if max(w, h) <= ratio * min(w, h))


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """The middle of a picture in that of `shapes(side)` which is most like its own, the larger one
    of two (Lumina-DiMOO's `var_center_crop`, which crops anywhere)."""
    width, height = picture.size

    def likeness(size: Size) -> tuple[float, Size]:
        across, down = size[0] / width, size[1] / height
        return min(across, down) / max(across, down), size

    size = max(shapes(side), key=likeness)
    while all(have >= 2 * want for have, want in zip(picture.size, size, strict=True)):
        picture = picture.resize((picture.width // 2, picture.height // 2), BOX)
    scale = max(size[0] / picture.width, size[1] / picture.height)
    whole = round(picture.width * scale), round(picture.height * scale)
    return middle(picture.resize(whole, BICUBIC), size)


def to_pixels(picture: Image.Image) -> Tensor:
    """(1, 3, H, W) float32 in [-1, 1] of an RGB picture."""
    values = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    return (values.float() / 255 - 0.5) / 0.5
