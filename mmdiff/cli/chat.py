"""Talk about pictures, turn by turn."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmdiff.cli._common import (
    DeviceOption,
    JsonOption,
    ModelOption,
    Report,
    Session,
    read_picture,
)
from mmdiff.config import split_arguments
from mmdiff.errors import InputError, MMDiffError
from mmdiff.heads.base import user_message
from mmdiff.loading import DEFAULT

if TYPE_CHECKING:
    from mmdiff.heads.tasks import Generation


def chat(
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=VALUE...]", help="Decoding settings.")
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option("--image", help="A picture to talk about; may be repeated.")
    ] = None,
    model: ModelOption = DEFAULT,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> int:
    """Talk about pictures, turn by turn.

    Every line is a turn, typed or piped in. /new forgets the talk so far, /quit ends it.
    """
    words, assignments = split_arguments(settings or [])
    if words:
        raise InputError(f"unexpected {words[0]!r}; type or pipe in what to say, one turn a line")
    session = Session("chat", model, assignments, device)
    talk = Talk(session, [read_picture(file).image for file in image or []])
    report = Report(as_json)
    number = 0
    for line in lines():
        text = line.strip()
        if text == "/quit":
            break
        if text == "/new":
            talk.history = []
        elif text:
            number += 1
            try:
                report.result(talk.turn(text), turn=number)
            except MMDiffError as error:
                report.failure(error, turn=number)
    return report.code


class Talk:
    """A conversation; its first turn shows the pictures. A turn that fails is forgotten."""

    def __init__(self, session: Session, pictures: list[Any]) -> None:
        self.session, self.pictures = session, pictures
        self.history: list[dict[str, Any]] = []

    def turn(self, text: str) -> Generation:
        asked = user_message(text, 0 if self.history else len(self.pictures))
        messages = [*self.history, asked]
        (made,) = self.session.run([(self.pictures, messages)], [0])
        # As a part, since an answer may be empty.
        said = {"role": "assistant", "content": [{"type": "text", "text": made.text}]}
        self.history = [*messages, said]
        return made


def lines() -> Iterator[str]:
    """Lines of stdin; on a terminal each is asked for, with the usual editing keys."""
    if not sys.stdin.isatty():
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="replace")
        yield from sys.stdin
        return
    with suppress(ImportError):  # gives input() its editing keys; Windows has none
        import readline  # noqa: F401

    while True:
        try:
            yield input("> ")
        except EOFError:
            return
