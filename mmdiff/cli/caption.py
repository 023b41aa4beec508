"""Describe pictures in words."""

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
from mmdiff.config import split_arguments
from mmdiff.errors import InputError
from mmdiff.loading import DEFAULT


def caption(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE... [NAME=VALUE...]", help="Pictures, then settings."),
    ],
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="What to ask instead of a description.")
    ] = None,
    animate: Annotated[
        Path | None,
        typer.Option(
            "--animate",
            metavar="OUT.gif",
            help="Draw how the caption of one picture fills up (.gif, .webp or .png).",
        ),
    ] = None,
    model: ModelOption = DEFAULT,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> int:
    """Describe pictures in words.

    Settings change how the words are found, for example steps=8 max_new_tokens=32
    accept=threshold:value=0.9. A picture that cannot be read is named and the others go on.
    """
    files, assignments = split_arguments(arguments)
    if not files:
        raise InputError("there is no picture; write mmdiff caption IMAGE...")
    if prompt is not None and not prompt.strip():
        raise InputError("--prompt is empty; leave it out for the usual description")
    if animate and len(files) > 1:
        raise InputError(f"--animate draws one picture, got {len(files)}; run it once for each")
    session = Session("caption", model, assignments, device)
    if animate:
        session.trace_to(animate)
    report = Report(as_json, many=len(files) > 1)
    for picture, made in over_files(session, files, prompt, report):
        if animate:
            session.draw(picture.image, made, animate)
    return report.code
