"""The processor of a published folder: its tokenizer with the family's prompt and tokens."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mmdiff.checkpoints import hub
from mmdiff.checkpoints.base import FAMILIES, pictures_of
from mmdiff.encoders.vision.patches import Patching
from mmdiff.errors import CheckpointError
from mmdiff.processing import ImageSettings, Processor, TextSettings, read_tokenizer

if TYPE_CHECKING:
    from mmdiff.checkpoints.base import Family
    from mmdiff.model import MMDiffModel

TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")


def processor_of(model: MMDiffModel, family: Family, folder: Path) -> Processor | None:
    """The folder's processor, or None where it holds no tokenizer.

    The tokenizer also says what config.json may not: mask id, forbidden ids and used rows; they
    are noted in the model's config. Raises CheckpointError where the vocabulary lacks the family's
    mask or image token.
    """
    if Processor.saved_in(folder):
        processor = Processor.from_pretrained(folder)
        if isinstance(processor.tiling, Patching):
            model.tiling = processor.tiling
        return processor
    if model.config.family in FAMILIES:  # one of our folders may have been converted from another
        family = FAMILIES.get(model.config.family)
    if family.mask is None or not any((folder / name).is_file() for name in TOKENIZERS):
        return None
    tokenizer = read_tokenizer(folder)
    if tokenizer.chat_template is None or family.fixed_template:
        tokenizer.chat_template = family.template
    ids = tokenizer.get_vocab()
    config, vision = model.config, model.vision
    for token in (family.mask, family.image):
        if token is not None and token not in ids:
            raise CheckpointError(f"{folder}: the tokenizer lacks the token {token!r}")
    config.mask_token_id = ids[family.mask]
    if family.image is not None:
        config.image_token_id = ids[family.image]
    config.forbidden_ids = [ids[token] for token in family.forbidden if token in ids]
    used = max(max(ids.values()) + 1, sum(config.codes or ()))
    config.vocab_used = min(model.rows, used)
    ends = [config.eos_token_id, *(ids.get(token) for token in family.ends)]
    text = TextSettings(
        mask_id=config.mask_token_id,
        end_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
        system=family.system,
        after_images=family.after_images,
        image_token=family.image,
        around_image=family.around_image,
    )
    image = ImageSettings.of(vision, model.image_tokens) if vision is not None else ImageSettings()
    return Processor(tokenizer, image, text, model.tiling)


def find_codec(model: MMDiffModel, folder: Path) -> None:
    """Tell the processor where the codec of pictures should be, if these are codes: inside the
    checkpoint's folder, else in the hub's cache."""
    pictures = pictures_of(model.config)
    if pictures is None or model.processor is None:
        return
    inside = model.processor.codec = folder / pictures.folder
    if not inside.exists() and hub.NAME.fullmatch(pictures.published):
        with suppress(CheckpointError):
            model.processor.codec = hub.find(pictures.published)
