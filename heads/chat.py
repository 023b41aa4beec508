"""Free chat: a list of messages, the next assistant turn out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mmdiff.errors import InputError
from mmdiff.heads.base import HEADS, Example, require_text

if TYPE_CHECKING:
    from PIL import Image

    from mmdiff.processing import Processor

ROLES = ("system", "user", "assistant")


@HEADS.register("chat")
class Chat:
    """`text` is the message list; the pictures stand, in order, for its {"type": "image"} parts."""

    defaults: ClassVar[dict[str, Any]] = {"max_new_tokens": 64}

    def compose(self, processor: Processor, images: list[Image.Image], text: Any) -> Example:
        if not isinstance(text, list) or not text:
            raise InputError(
                "messages must be a list of {'role', 'content'} with at least one entry"
            )
        slots = 0
        for number, message in enumerate(text):
            slots += _check(message, f"message {number}")
        if text[-1]["role"] != "user":
            raise InputError("the last message must be the user's")
        if slots != len(images):
            raise InputError(
                f"the messages hold {slots} image parts but {len(images)} pictures came"
            )
        return Example(text, images)

    def read(self, processor: Processor, ids: list[int], example: Example) -> str:
        return processor.decode(ids)


def _check(message: Any, where: str) -> int:
    """Image parts in a well-formed message; raises InputError for others."""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise InputError(f"{where}: the role must be one of {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, str):
        if message["role"] == "user":
            require_text(content, f"text of {where}")
        return 0
    if not isinstance(content, list):
        raise InputError(f"{where}: content must be text or a list of parts")
    images = 0
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image":
            images += 1
        elif kind != "text" or not isinstance(part.get("text"), str):
            raise InputError(f"{where}: a part must be an image or text")
    if message["role"] == "user" and not images:
        require_text("".join(part["text"] for part in content), f"text of {where}")
    return images
