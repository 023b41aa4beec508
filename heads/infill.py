"""Infilling: a sentence with holes in, the same sentence filled out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

from mmdiff.errors import InputError
from mmdiff.heads.base import HEADS, Example, require_text, user_message
from mmdiff.heads.caption import PROMPT

if TYPE_CHECKING:
    from PIL import Image

    from mmdiff.processing import Processor

HOLE = re.compile(r"\[MASK(?::(\d+))?\]")
MAX_HOLE = 1024


@HEADS.register("infill")
class Infill:
    """`text` is a template such as "a [MASK:2] on a table": [MASK:n] stands for n tokens, [MASK]
    for one. Given words are never changed."""

    defaults: ClassVar[dict[str, Any]] = {"stop": "none"}

    def compose(self, processor: Processor, images: list[Image.Image], text: Any) -> Example:
        template, holes = parse_template(processor, require_text(text, "template"))
        messages = [user_message(PROMPT, len(images))]
        return Example(messages, images, template, holes)

    def read(self, processor: Processor, ids: list[int], example: Example) -> str:
        return processor.decode(ids)


def parse_template(processor: Processor, text: str) -> tuple[list[int], list[bool]]:
    """Ids with mask ids in the holes, and which cells are holes; ends with end-of-text."""
    ids: list[int] = []
    holes: list[bool] = []
    place = 0
    for match in HOLE.finditer(text):
        count = int(match[1] or 1)
        if not 1 <= count <= MAX_HOLE:
            raise InputError(f"{match[0]}: a hole takes 1 to {MAX_HOLE} tokens")
        # The space before a hole belongs to the word that will fill it.
        given = processor.encode(text[place : match.start()].rstrip(" "))
        ids += given + [processor.mask_id] * count
        holes += [False] * len(given) + [True] * count
        place = match.end()
    if not any(holes):
        raise InputError(
            "the template has no hole; write [MASK] or [MASK:n] where words are missing"
        )
    rest = [*processor.encode(text[place:]), processor.end_id]
    return ids + rest, holes + [False] * len(rest)
