"""OpenAI messages: {"role", "content": text | parts}, with <image> in the text or image parts."""

from __future__ import annotations

from typing import Any

from mmdiff.data.llava import split
from mmdiff.data.rows import BadRow, Picture, Said

ROLES = ("user", "assistant", "system")


def messages(message: dict[str, Any]) -> Said:
    """One message of a `messages` list."""
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise BadRow("message_type", "role must be text")
    if role not in ROLES:
        raise BadRow("unknown_role", f"role {role[:40]!r}; use {', '.join(ROLES)}")
    if isinstance(content, str):
        return Said(role, split(content))
    if not isinstance(content, (list, tuple)) or not all(isinstance(p, dict) for p in content):
        raise BadRow("message_type", "content must be text or a list of parts")
    return Said(role, tuple(_part(part) for part in content))


def _part(part: dict[str, Any]) -> str | Picture:
    """Text, a picture of the part's own (image, path, url, image_url), or the row's next one."""
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind in ("image", "image_url"):
        given = [part[key] for key in ("image", "path", "url", "image_url") if part.get(key)]
        source = given[0] if given else None
        if isinstance(source, dict) and "url" in source:
            source = source["url"]
        if kind == "image_url" and source is None:
            raise BadRow("image_type", "an image_url part needs its url")
        return Picture(source)
    if kind in ("video", "video_url", "audio", "input_audio"):
        raise BadRow("other_media", f"{kind}: only pictures and text can be trained on")
    raise BadRow("message_type", f"a part must be text or an image, got type {kind!r}")
