"""DiffusionGemma's prompts: the folder's own chat template, and pictures as Gemma 4 cuts them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmdiff.checkpoints.prompts import TOKENIZERS
from mmdiff.errors import CheckpointError, InputError
from mmdiff.processing import ImageSettings, Processor, TextSettings, read_tokenizer

if TYPE_CHECKING:
    from mmdiff.heads.base import Example

NO_MASK = -1  # noise is any id
PICTURES = ("preprocessor_config.json", "processor_config.json")


class GemmaProcessor(Processor):
    """`pictures` is transformers' image processor, None where the folder has none; `ids` are those
    before, in place of, and behind a picture."""

    def __init__(
        self, tokenizer: Any, pictures: Any, ids: tuple[int, int, int], end_ids: tuple[int, ...]
    ) -> None:
        before, image, behind = tokenizer.convert_ids_to_tokens(list(ids))
        text = TextSettings(image, NO_MASK, end_ids, around_image=(before, behind))
        super().__init__(tokenizer, ImageSettings(), text)
        self.pictures, self.picture_ids = pictures, ids

    def inputs(self, example: Example) -> dict[str, Tensor]:
        """What the network takes of one example: `input_ids` (1, P) and, with pictures, which of
        them are of a picture (`mm_token_type_ids`), patches and their places."""
        ids, images = self.prompt_ids(example.messages), example.images
        if not images:
            return {"input_ids": torch.tensor([ids])}
        image = self.picture_ids[1]
        if ids.count(image) != len(images):
            raise InputError(
                f"the checkpoint's chat template shows {ids.count(image)} of {len(images)} pictures"
            )
        seen = dict(self.pictures(list(images), return_tensors="pt"))
        row = torch.tensor([self.around(ids, seen.pop("num_soft_tokens_per_image").tolist())])
        return {"input_ids": row, "mm_token_type_ids": (row == image).long(), **seen}

    def around(self, ids: Sequence[int], counts: Sequence[int]) -> list[int]:
        """Ids with each picture's token as often as it has soft tokens, between its two others."""
        before, image, behind = self.picture_ids
        left, out = iter(counts), []
        for i in ids:
            out += [before, *[image] * next(left), behind] if i == image else [i]
        return out

    def _flatten(self, content: Any, guard: Callable[[str], str]) -> Any:
        """Parts where there are pictures: the folder's template says how these are written."""
        if isinstance(content, str):
            return guard(content)
        if all(part["type"] == "text" for part in content):
            return guard("".join(part["text"] for part in content))
        parts: list[dict[str, str]] = []
        for kind, group in itertools.groupby(content, key=lambda part: part["type"]):
            if kind == "text":
                text = "".join(part["text"] for part in group)
                parts.append({"type": "text", "text": guard(text)})
            elif self.pictures is None:
                files = " and no ".join(PICTURES)
                raise InputError(f"this checkpoint cannot read pictures: it has no {files}")
            else:
                parts += [{"type": "image"} for _ in group]
        return parts


def read(folder: Path, config: Any, end_ids: tuple[int, ...]) -> GemmaProcessor | None:
    """The processor of a folder, None where it holds no tokenizer; `config` is transformers'.
    Raises CheckpointError for files that are unfit."""
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return None
    tokenizer = read_tokenizer(folder)
    ids = (config.boi_token_id, config.image_token_id, config.eoi_token_id)
    if None in ids or max(ids) >= len(tokenizer):
        raise CheckpointError(
            f"{folder}: the tokenizer's {len(tokenizer)} tokens lack those around pictures, {ids}"
        )
    return GemmaProcessor(tokenizer, read_pictures(folder), ids, end_ids)


def read_pictures(folder: Path) -> Any:
    """transformers' image processor of a folder, on PIL and numpy; None where it has no settings of
    one. Raises CheckpointError for settings that are unfit."""
    if not any((folder / name).is_file() for name in PICTURES):
        return None
    try:
        from transformers import Gemma4ImageProcessorPil as Pictures

        return Pictures.from_pretrained(folder, local_files_only=True)
    except (ImportError, OSError, ValueError, TypeError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(f"{folder}: pictures cannot be read ({reason})") from None
