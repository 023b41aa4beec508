"""Convert a published checkpoint to a folder of our own, or back."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from mmdiff.cli._common import JsonOption, say, say_json
from mmdiff.config import build, parse_assignments, split_arguments
from mmdiff.errors import InputError, SettingError
from mmdiff.loading import resolve


@dataclass(frozen=True)
class Settings:
    shard_gb: float = 5.0

    def __post_init__(self) -> None:
        if self.shard_gb <= 0:
            raise SettingError(f"shard_gb must be more than 0, got {self.shard_gb:g}")


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A checkpoint folder, or a hub id on this machine.")
    ],
    target: Annotated[str, typer.Argument(metavar="DST", help="The folder to make.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=VALUE...]", help="shard_gb=5: the largest file, in GB."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a published checkpoint to a folder of our own, or back.

    The tensors stay as they are, bit for bit. Example: mmdiff convert lavida ours shard_gb=2.
    """
    from mmdiff.checkpoints.convert import convert as run
    from mmdiff.cli.info import megabytes

    words, assignments = split_arguments([source, target, *(settings or [])])
    if len(words) != 2:
        raise InputError(f"give SRC and DST, then settings as name=value; got {' '.join(words)}")
    given = build(Settings, parse_assignments(assignments))
    made = run(resolve(source), Path(target), given.shard_gb)
    if made.unused:
        reason = f"that the code of {made.family} never reads"
        print(f"mmdiff: note: left out {made.unused} tensors {reason}", file=sys.stderr)
    if as_json:
        say_json({"source": source, "output": target, **asdict(made)})
    else:
        size = megabytes(made.bytes)
        say(f"{target}: {made.tensors} tensors, {size}, in the layout of {made.layout}")
