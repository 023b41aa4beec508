"""What a task is: compose inputs into an Example with holes, read the filled answer back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from mmdiff.errors import InputError
from mmdiff.registry import Registry

if TYPE_CHECKING:
    from PIL import Image

    from mmdiff.processing import Processor


@dataclass
class Example:
    """Messages and pictures, and an answer region: `max_new_tokens` holes, or a template of ids of
    which `holes` are to be filled."""

    messages: list[dict[str, Any]]
    images: list[Image.Image] = field(default_factory=list)
    template: list[int] | None = None
    holes: list[bool] | None = None


class Head(Protocol):
    """One task. `defaults` are decoding settings; a checkpoint's own and the user's go on top."""

    defaults: ClassVar[dict[str, Any]]

    def compose(self, processor: Processor, images: list[Image.Image], text: Any) -> Example:
        """The example for pictures and the task's text (question, messages, template)."""

    def read(self, processor: Processor, ids: list[int], example: Example) -> str:
        """The answer from the filled answer region."""


HEADS: Registry[type[Head]] = Registry(
    "head",
    modules=(
        "mmdiff.heads.caption",
        "mmdiff.heads.answer",
        "mmdiff.heads.chat",
        "mmdiff.heads.infill",
    ),
)


def user_message(text: str, images: int = 0) -> dict[str, Any]:
    """A user turn: pictures first, then the text."""
    if not isinstance(text, str):
        raise InputError(f"the text must be a string, got {type(text).__name__}")
    parts: list[dict[str, Any]] = [{"type": "image"}] * images
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def require_text(text: Any, what: str) -> str:
    """Stripped text; raises InputError when there is none."""
    if not isinstance(text, str):
        raise InputError(f"the {what} must be text, got {type(text).__name__}")
    if not text.strip():
        raise InputError(f"the {what} is empty; write what you want to know")
    return text.strip()
