"""Answer a question, about a picture or without one."""

from __future__ import annotations

from pathlib import Path
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
from mmdiff.config import exists, split_arguments
from mmdiff.errors import InputError
from mmdiff.heads.base import require_text
from mmdiff.loading import DEFAULT


def answer(
    image: Annotated[
        str, typer.Argument(metavar="[IMAGE]", help="The picture; none for a model of text alone.")
    ],
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="In quotes.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=VALUE...]", help="Decoding settings.")
    ] = None,
    model: ModelOption = DEFAULT,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> int:
    """Answer a question, about a picture or without one."""
    files = [image]
    if question is None or not (exists(image) or split_arguments([question])[0]):
        files, question, settings = [], image, [*filter(None, [question]), *(settings or [])]
        if exists(question) or (Path(question).suffix and not question.split()[1:]):
            raise InputError(f"there is no question about {question}; write it behind, in quotes")
    words, assignments = split_arguments(settings or [])
    if words:
        raise InputError(f"unexpected {words[0]!r} behind the question; put the question in quotes")
    question = require_text(question, "question")
    session = Session("answer", model, assignments, device)
    report = Report(as_json)
    if not files:
        session.check_seeds(1)
        report.result(session.run([([], question)], [0])[0], file=None)
    for _ in over_files(session, files, question, report):
        pass
    return report.code
