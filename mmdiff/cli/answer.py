"""Answer a question about a picture."""

from __future__ import annotations

from typing import Annotated

import typer

from mmdiff.cli._common import (
    DeviceOption,
    JsonOption,
    ModelOption,
    Report,
    Session,
    over_files,
)
from mmdiff.config import split_arguments
from mmdiff.errors import InputError
from mmdiff.heads.base import require_text
from mmdiff.loading import DEFAULT


def answer(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="The picture.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="In quotes.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=VALUE...]", help="Decoding settings.")
    ] = None,
    model: ModelOption = DEFAULT,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> int:
    """Answer a question about a picture."""
    words, assignments = split_arguments(settings or [])
    if words:
        raise InputError(f"unexpected {words[0]!r} behind the question; put the question in quotes")
    question = require_text(question, "question")
    session = Session("answer", model, assignments, device)
    report = Report(as_json)
    for _ in over_files(session, [image], question, report):
        pass
    return report.code
