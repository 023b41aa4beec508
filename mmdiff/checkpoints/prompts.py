"""The processor of a published folder: its tokenizer with the family's prompt and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.checkpoints import hub
from mmdiff.checkpoints.base import FAMILIES, Pictures, pictures_of
from mmdiff.encoders.vision.patches import Patching
from mmdiff.errors import CheckpointError, SettingError
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


def place_codec(model: MMDiffModel, folder: Path, given: Any = None) -> None:
    """Tell the processor which codec makes codes of pictures, or in which folder its weights are.

    `given` is either, or a hub id on this machine; without it, the folder's own or the one that the
    family published. Raises SettingError for a model that has no use for one, CheckpointError for
    one that is not there.
    """
    pictures = pictures_of(model.config)
    if pictures is None or model.processor is None:
        if given is not None:
            why = "reads no pictures as codes" if pictures is None else "has no tokenizer"
            raise SettingError(f"codec={given}: {folder} {why}; leave it out")
        return
    if isinstance(given, (str, Path)):
        given = codec_folder(str(given))
    model.processor.codec = given or own_codec(folder, pictures)


def codec_folder(name: str) -> Path:
    """The folder (or file) of a codec's weights by its path or hub id; raises CheckpointError."""
    path = Path(name)
    if path.exists():
        return path
    if hub.NAME.fullmatch(name):
        return hub.find(name)
    raise CheckpointError(f"codec={name}: there is no such folder; name the one of its weights")


def own_codec(folder: Path, pictures: Pictures) -> Path:
    """Where a checkpoint's codec should be: inside its folder, else in the hub's cache."""
    inside = folder / pictures.folder
    if inside.exists() or not hub.NAME.fullmatch(pictures.published):
        return inside
    try:
        return hub.find(pictures.published)
    except CheckpointError:
        return inside
