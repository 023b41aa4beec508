"""Pictures to talk about where a family reads them as codes: their ids stand in the prompt."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmdiff.checkpoints.base import Pictures, pictures_of
from mmdiff.encoders.codes import Codec, load_codec
from mmdiff.encoders.codes.frames import to_pixels
from mmdiff.errors import InputError, SettingError
from mmdiff.processing import PLACEHOLDER

if TYPE_CHECKING:
    from PIL import Image

    from mmdiff.heads.base import Example
    from mmdiff.model import MMDiffModel

Seen = dict[tuple[int, int], list[int]]  # (a picture's identity, pictures in its row) -> its ids


def prompt(
    model: MMDiffModel,
    pictures: Pictures,
    example: Example,
    seen: Seen,
    compat: str | None = None,
) -> tuple[list[int], list[int]]:
    """The ids of an example's prompt, with its pictures' codes in their places, and the ids that
    stand fixed behind the answer. `seen` keeps what pictures became, for the batch's other rows."""
    reader = copy(model.processor)
    assert reader is not None
    reader.image_token_id = PLACEHOLDER  # not on the model's own: nothing else fills it with codes
    ids, behind = pictures.ask(reader, example.messages)
    count = len(example.images)
    for image in example.images:
        key = (id(image), count)
        if key not in seen:
            codes, width = code_ids(model, pictures, image, count)
            seen[key] = pictures.cells(reader, codes, width, compat)
    rest = iter(example.images)
    out: list[int] = []
    for i in ids:
        out += seen[id(next(rest)), count] if i == PLACEHOLDER else [i]
    if (top := max((0, *out, *behind))) >= model.rows:
        raise InputError(
            f"the prompt needs the id {top}, but this model has {model.rows} rows; its tokenizer "
            "must name the tokens around pictures and answers"
        )
    return out, behind


@torch.inference_mode()
def code_ids(
    model: MMDiffModel, pictures: Pictures, image: Image.Image, count: int
) -> tuple[list[int], int]:
    """The ids of one of `count` pictures, and how many are a row. They are read one by one, so that
    none meets another."""
    codec = codec_of(model, pictures)
    first, _ = codes_of(model, codec)
    crop = pictures.crop(image, count)
    if any(side % codec.factor for side in crop.size):
        width, height = crop.size
        raise InputError(
            f"a picture is read at {width} x {height} pixels, which this codec's factor "
            f"{codec.factor} does not divide; use the published codec"
        )
    codes = codec.encode(to_pixels(crop))[0]
    return (codes + first).flatten().tolist(), codes.shape[1]


def codes_of(model: MMDiffModel, codec: Codec) -> tuple[int, int]:
    """First id and number of the model's image codes, which must be as many as the codec's."""
    if not model.config.codes:
        raise InputError(
            "which ids are this model's image codes is not known; set model.config.codes = [first "
            "id, how many]"
        )
    first, count = model.config.codes
    if codec.size != count:
        raise InputError(f"the codec has {codec.size} codes, but this model has {count}")
    return first, count


def use_codec(model: MMDiffModel, codec: Codec | str | Path) -> None:
    """Make this codec the model's own; the folder of one that is loaded already changes nothing."""
    pictures, processor = pictures_of(model.config), model.processor
    if pictures is None or processor is None:
        raise SettingError(f"codec={codec}: this model reads no pictures as codes; leave it out")
    if not isinstance(codec, (str, Path)):
        processor.codec = codec
    elif getattr(processor.codec, "place", None) != Path(codec):
        processor.codec = Path(codec)


def codec_of(model: MMDiffModel, pictures: Pictures) -> Codec:
    """The codec of the model's pictures, loaded when first asked for; InputError where none is."""
    processor = model.processor
    assert processor is not None
    place = processor.codec
    if place is None or (isinstance(place, Path) and not place.exists()):
        raise InputError(
            f"{place or 'this model'}: the codec that makes codes of pictures is not there; name "
            f"its folder as codec=FOLDER (it is published as {pictures.published})"
        )
    if isinstance(place, Path):
        processor.codec = load_codec(pictures.codec, place, device=model.device)
        processor.codec.place = place
    codec: Codec = processor.codec
    return codec
