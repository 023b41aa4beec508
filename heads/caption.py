"""Captioning: a picture in, a sentence out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mmdiff.heads.base import HEADS, Example, user_message

if TYPE_CHECKING:
    from PIL import Image

    from mmdiff.processing import Processor

PROMPT = "describe the picture."


@HEADS.register("caption")
class Caption:
    """`text` replaces the default request when given."""

    defaults: ClassVar[dict[str, Any]] = {"max_new_tokens": 64}

    def compose(self, processor: Processor, images: list[Image.Image], text: Any) -> Example:
        return Example([user_message(text or PROMPT, len(images))], images)

    def read(self, processor: Processor, ids: list[int], example: Example) -> str:
        return processor.decode(ids)
