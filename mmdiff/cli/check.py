"""Find every bad row of a data set before training on it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from mmdiff.cli._common import JsonOption, say, say_json
from mmdiff.cli._progress import show_rows
from mmdiff.errors import SettingError

if TYPE_CHECKING:
    from mmdiff.data.check import Checked, Tally


def check(
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="A .json, .jsonl, .tar or .parquet file, or a folder."),
    ],
    image_root: Annotated[
        Path | None,
        typer.Option(
            "--image-root",
            metavar="DIR",
            help="Where pictures are. Default: images/ beside the file, or its folder.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Write a line of JSON per row."),
    ] = None,
    unique_ids: Annotated[
        bool, typer.Option(help="Whether a second row with an id is bad.")
    ] = True,
    as_json: JsonOption = False,
) -> int:
    """Find every bad row of a data set before training on it.

    Counts what is wrong by kind, with the first row of each; exit code 2 when there is any.
    Example: mmdiff check mine/train.json --output report.jsonl.
    """
    from mmdiff.data.check import Tally
    from mmdiff.data.check import check as checked
    from mmdiff.data.pictures import data_root
    from mmdiff.data.readers import data_file, open_data

    file = data_file(data)
    root = data_root(file, image_root)
    tally = Tally()
    with report_to(output) as report:
        for row in show_rows(file.name, checked(open_data(file), root, unique_ids)):
            tally.add(row)
            if report:
                report.write(json.dumps(line(row)) + "\n")
    if as_json:
        say_json({"data": str(file), "rows": tally.rows, "bad": tally.bad, "kinds": tally.kinds})
    else:
        tell(tally, str(file), output)
    return 2 if tally.bad or not tally.rows else 0


def line(row: Checked) -> dict[str, str | bool]:
    """A row of the report."""
    about: dict[str, str | bool] = {"place": row.place, "id": row.id, "ok": not row.kind}
    return about | ({"kind": row.kind, "text": row.text} if row.kind else {})


def tell(tally: Tally, file: str, output: Path | None) -> None:
    say(f"{file}: {tally.rows} rows, {tally.rows - tally.bad} good, {tally.bad} bad")
    for kind, count in tally.kinds.most_common():
        first = tally.first[kind]
        say(f"  {count:6}  {kind:17}  {first.place}: {first.text}")
    if tally.bad and output is None:
        say("--output report.jsonl writes every row's verdict")


@contextmanager
def report_to(path: Path | None) -> Iterator[TextIO | None]:
    """A file that is there when it is whole."""
    if path is None:
        yield None
        return
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "w", encoding="utf-8") as file:
            yield file
        os.replace(part, path)
    except OSError as error:
        raise SettingError(f"--output {path}: cannot be written ({error.strerror})") from error
    finally:
        part.unlink(missing_ok=True)
