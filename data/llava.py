"""LLaVA and ShareGPT conversations: {"from": "human" | "gpt", "value": "<image>\\n..."}."""

from __future__ import annotations

import re
from typing import Any

from mmdiff.data.rows import BadRow, Picture, Said

PLACEHOLDER = "<image>"
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def conversations(message: dict[str, Any]) -> Said:
    """One message of a `conversations` list."""
    role, value = message.get("from"), message.get("value")
    if not isinstance(role, str) or not isinstance(value, str):
        raise BadRow("message_type", "from and value must be text")
    if role not in ROLES:
        raise BadRow("unknown_role", f"from {role[:40]!r}; use {', '.join(ROLES)}")
    return Said(ROLES[role], split(value))


def split(text: str) -> tuple[str | Picture, ...]:
    """Text and the pictures between. Line breaks beside a picture belong to the format, not to the
    text: what stands around a picture in a prompt is the checkpoint's to say."""
    parts: list[str | Picture] = []
    for number, piece in enumerate(re.split(PLACEHOLDER, text.strip())):
        if number:
            parts.append(Picture())
        piece = piece.strip("\r\n")
        leading = number and all(isinstance(part, Picture) for part in parts)
        piece = piece.lstrip() if leading else piece
        if piece:
            parts.append(piece)
    return tuple(parts)
