"""One row of a data file as training takes it, or what is wrong with it.

A file's reader (`readers.py`) finds raw rows; a format (`llava.py`, `messages.py`) turns the
conversation in one into messages; `read_row` puts both together and holds every rule that needs
no picture. `pictures.py` has the rules for those.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mmdiff.errors import DataError

KINDS = {
    "encoding": "text that is not UTF-8, or half of a surrogate pair",
    "broken_json": "not valid JSON",
    "broken_file": "the file ends or breaks in the middle",
    "not_an_object": "a row that is no object of names and values",
    "duplicate_key": "a name that stands twice in one object, or a file twice in one tar sample",
    "no_conversation": "neither conversations nor messages",
    "ambiguous": "both image and images, or both conversations and messages",
    "conversation_type": "a conversation that is no list of messages with at least one",
    "message_type": "a message without role or text, or of the wrong type",
    "id_type": "an id that is neither text nor a whole number",
    "image_type": "an image that is neither a name nor a list of names",
    "empty_image_name": "an image without a name",
    "image_url": "an image on the web, which is never fetched",
    "bad_base64": "a data: image that does not decode",
    "other_media": "a video or audio",
    "unknown_role": "a role other than user, assistant and system, under all their names",
    "role_order": "messages that do not take turns, beginning with the user",
    "no_answer": "a conversation that ends without an answer",
    "empty_answer": "an answer without text",
    "empty_question": "a question without text and picture",
    "image_in_answer": "a picture in an answer or a system message",
    "more_placeholders": "more <image> than pictures",
    "fewer_placeholders": "fewer <image> than pictures",
    "duplicate_id": "an id that an earlier row has",
    "outside_root": "a path that leads out of the image root",
    "missing_image": "a picture file that does not exist",
    "not_a_file": "a picture that is a folder or cannot be opened",
    "empty_image": "a picture file of no bytes",
    "not_an_image": "a file that is no picture of a known format",
    "damaged_image": "a picture that is damaged or cut short",
    "image_too_large": "a picture of too many pixels or bytes",
    "image_shape": "a picture too small or too narrow",
    "image_values": "a picture whose values have no known range",
    "too_long": "a conversation longer than the model's positions (found by training alone)",
}


class BadRow(DataError):
    """A row that cannot be trained on: its `kind` of KINDS, and in words what is wrong."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        assert kind in KINDS
        self.kind = kind

    def __reduce__(self) -> Any:
        return BadRow, (self.kind, str(self))


@dataclass(frozen=True)
class DataRow:
    """A conversation as `Processor.prompt_ids` takes it: {"role", "content": parts}.

    Its image parts stand, in order, for `images`: names under the image root, or bytes of files.
    Users and assistants take turns, the last message is an answer. `id` is '' where the row has
    none.
    """

    id: str
    images: tuple[str | bytes, ...]
    messages: tuple[dict[str, Any], ...]

    @property
    def answers(self) -> list[int]:
        """Which messages are answers."""
        return [i for i, m in enumerate(self.messages) if m["role"] == "assistant"]

    @property
    def question(self) -> str:
        """The words of the first message of the user."""
        asked = next(m["content"] for m in self.messages if m["role"] == "user")
        return "".join(part["text"] for part in asked if part["type"] == "text").strip()


# What a format makes of one message: its role, its text and pictures in order. A picture is None
# where it stands for the next one of the row's own list.
@dataclass(frozen=True)
class Picture:
    source: Any = None


@dataclass(frozen=True)
class Said:
    role: str
    parts: tuple[str | Picture, ...]

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str)).strip()

    @property
    def pictures(self) -> list[Picture]:
        return [part for part in self.parts if isinstance(part, Picture)]

    @property
    def message(self) -> dict[str, Any]:
        """As `Processor.prompt_ids` takes it."""
        if self.role != "user":
            return {"role": self.role, "content": self.text}
        parts = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
            for part in self.parts
        ]
        return {"role": "user", "content": parts}


class TwiceDict(dict[str, Any]):
    """A JSON object in which a name stood twice."""


def read_row(raw: Any) -> DataRow:
    """A raw row's conversation and pictures. Raises BadRow for the first thing that is wrong."""
    if not isinstance(raw, dict):
        raise BadRow("not_an_object", f"a row must be an object, got {_kind(raw)}")
    for text in _strings(raw):
        if not text.isascii():
            _check_text(text)
    for key in ("video", "videos", "audio", "audios"):
        if raw.get(key):
            raise BadRow("other_media", f"{key}: only pictures and text can be trained on")
    said = _conversation(raw)
    _check_order(said)
    images = _match(said, _images(raw))
    return DataRow(_id(raw), images, tuple(each.message for each in said))


def _conversation(raw: dict[str, Any]) -> list[Said]:
    from mmdiff.data.llava import conversations
    from mmdiff.data.messages import messages

    formats: dict[str, Callable[[Any], Said]] = {
        "conversations": conversations,
        "messages": messages,
    }
    found = [name for name in formats if raw.get(name) is not None]
    if not found:
        raise BadRow("no_conversation", f"the row needs {' or '.join(formats)}")
    if len(found) > 1:
        raise BadRow("ambiguous", "the row has both conversations and messages; keep one")
    value = raw[found[0]]
    if not isinstance(value, (list, tuple)) or not len(value):
        raise BadRow("conversation_type", f"{found[0]} must be a list with at least one message")
    said = []
    for number, each in enumerate(value, start=1):
        if not isinstance(each, dict):
            raise BadRow("message_type", f"message {number} must be an object, got {_kind(each)}")
        try:
            said.append(formats[found[0]](each))
        except BadRow as error:
            raise BadRow(error.kind, f"message {number}: {error}") from None
    return said


def _check_order(said: list[Said]) -> None:
    turns = said[1:] if said[0].role == "system" else said
    first = 1 + len(said) - len(turns)
    for number, each in enumerate(turns):
        wanted = ("user", "assistant")[number % 2]
        where = f"message {first + number}"
        if each.role != wanted:
            raise BadRow("role_order", f"{where} is of {each.role}, expected {wanted}")
        if each.role == "assistant" and not each.text:
            raise BadRow("empty_answer", f"{where}: the answer is empty")
        if each.role == "user" and not each.text and not each.pictures:
            raise BadRow("empty_question", f"{where}: the question is empty")
    if len(turns) % 2 or not turns:
        raise BadRow("no_answer", "the last message must be an answer")
    for number, each in enumerate(said, start=1):
        if each.role != "user" and each.pictures:
            raise BadRow("image_in_answer", f"message {number}: only the user shows pictures")


def _match(said: list[Said], own: list[Any]) -> tuple[str | bytes, ...]:
    """The pictures in the order in which the messages show them."""
    shown = [picture.source for each in said for picture in each.pictures]
    slots = sum(source is None for source in shown)
    if slots != len(own):
        kind = "more_placeholders" if slots > len(own) else "fewer_placeholders"
        raise BadRow(kind, f"{slots} <image> for {len(own)} pictures")
    rest = iter(own)
    return tuple(image_source(next(rest) if source is None else source) for source in shown)


def _images(raw: dict[str, Any]) -> list[Any]:
    given = [name for name in ("image", "images") if raw.get(name) is not None]
    if len(given) > 1:
        raise BadRow("ambiguous", "the row has both image and images; keep one")
    value = raw[given[0]] if given else []
    listed = value if isinstance(value, (list, tuple)) else [value]
    for each in listed:
        image_source(each)  # so that a wrong type is told before a wrong number
    return list(listed)


def image_source(value: Any) -> str | bytes:
    """A picture's name, or its bytes: from text, bytes, a data: URL or {"bytes", "path"}."""
    if isinstance(value, dict) and set(value) <= {"bytes", "path"}:
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise BadRow("image_type", f"an image must be the name of a file, got {_kind(value)}")
    if not value.strip():
        raise BadRow("empty_image_name", "the name of the image is empty; leave image out")
    if re.match(r"(?i)data:", value):
        return _from_base64(value)
    if re.match(r"(?i)[a-z][a-z0-9+.-]+://", value):
        raise BadRow("image_url", f"{value[:100]} is not fetched; download it, give its file name")
    return value


def _from_base64(url: str) -> bytes:
    head, comma, body = url.partition(",")
    try:
        if not comma or not head.lower().endswith(";base64"):
            raise ValueError("not base64")
        return base64.b64decode(body, validate=True)
    except (ValueError, binascii.Error):
        raise BadRow("bad_base64", f"{url[:40]}... does not decode as base64") from None


def _id(raw: dict[str, Any]) -> str:
    value = raw.get("id")
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise BadRow("id_type", f"the id must be text or a whole number, got {_kind(value)}")
    return str(value)


def _strings(value: Any) -> Iterator[str]:
    """Every text in a raw row, names included."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, TwiceDict):
            raise BadRow("duplicate_key", "a name stands twice in one object")
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict):
            waiting += each.keys()
            waiting += each.values()
        elif isinstance(each, (list, tuple)):
            waiting += each


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 10) : error.start + 10]
        shown = around.encode("utf-8", "backslashreplace").decode()
        raise BadRow("encoding", f"not UTF-8 at {shown!r}; save the file as UTF-8") from None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", type(None): "nothing"}
    names |= {int: "a number", float: "a number", bool: "true or false", bytes: "bytes"}
    return names.get(type(value), type(value).__name__)
