"""Visual question answering: pictures and a question in, a short answer out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mmdiff.heads.base import HEADS, Example, require_text, user_message

if TYPE_CHECKING:
    from PIL import Image

    from mmdiff.processing import Processor


@HEADS.register("answer")
class Answer:
    defaults: ClassVar[dict[str, Any]] = {"max_new_tokens": 8}

    def compose(self, processor: Processor, images: list[Image.Image], text: Any) -> Example:
        return Example([user_message(require_text(text, "question"), len(images))], images)

    def read(self, processor: Processor, ids: list[int], example: Example) -> str:
        return processor.decode(ids)
