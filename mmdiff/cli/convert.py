"""Convert a published checkpoint to a folder of our own, or back."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmdiff.cli._common import JsonOption, say, say_json
from mmdiff.config import build, parse_assignments, split_arguments
from mmdiff.errors import InputError, SettingError
from mmdiff.loading import resolve

if TYPE_CHECKING:
    from mmdiff.checkpoints.convert import Conversion
    from mmdiff.checkpoints.start import Started


@dataclass(frozen=True)
class Settings:
    shard_gb: float = 5.0
    block_length: int | None = None  # of --layout block_causal

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
        typer.Argument(
            metavar="[NAME=VALUE...]",
            help="shard_gb=5: the largest file, in GB. block_length=32: of block_causal.",
        ),
    ] = None,
    to_diffusion: Annotated[
        bool,
        typer.Option(
            "--to-diffusion", help="SRC is autoregressive; make a diffusion model to train of it."
        ),
    ] = False,
    layout: Annotated[
        str | None,
        typer.Option(help="Its attention: full (the default), prefix or block_causal."),
    ] = None,
    shift: Annotated[
        bool | None,
        typer.Option(help="Whether cell i is predicted at i - 1. Default: yes, block_causal no."),
    ] = None,
    mask_token: Annotated[
        str | None, typer.Option(help="Its mask token. Default: the tokenizer's, or <|mask|>.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a published checkpoint to a folder of our own, or back.

    The tensors stay as they are, bit for bit. Example: mmdiff convert lavida ours shard_gb=2.

    --to-diffusion makes a diffusion model to train of an autoregressive one: mmdiff convert qwen
    start --to-diffusion --layout block_causal block_length=32.
    """
    words, assignments = split_arguments([source, target, *(settings or [])])
    if len(words) != 2:
        raise InputError(f"give SRC and DST, then settings as name=value; got {' '.join(words)}")
    given = build(Settings, parse_assignments(assignments))
    options: dict[str, Any] = {"layout": layout, "shift": shift, "mask_token": mask_token}
    options["block_length"] = given.block_length
    start = {name: value for name, value in options.items() if value is not None}
    if start and not to_diffusion:
        raise InputError(f"{next(iter(start))} goes with --to-diffusion")
    made = run(resolve(source), Path(target), given.shard_gb, start if to_diffusion else None)
    for note in made.notes:
        print(f"mmdiff: note: {note}", file=sys.stderr)
    if as_json:
        say_json({"source": source, "output": target, **asdict(made)})
    else:
        say(f"{target}: {in_words(made)}")


def run(
    source: Path, target: Path, shard_gb: float, start: dict[str, Any] | None
) -> Conversion | Started:
    """The conversion, to a start of diffusion training where its settings are given."""
    from mmdiff.checkpoints import convert
    from mmdiff.checkpoints.start import Start, to_diffusion

    if start is None:
        return convert.convert(source, target, shard_gb)
    return to_diffusion(source, target, Start(**start), shard_gb)


def in_words(made: Conversion | Started) -> str:
    from mmdiff.checkpoints.start import Started
    from mmdiff.cli.info import megabytes

    stored = f"{made.tensors} tensors, {megabytes(made.bytes)}, in the layout of {made.layout}"
    if not isinstance(made, Started):
        return stored
    place = "i - 1" if made.shift else "i"
    return (
        f"{stored}; {made.attention_layout} attention, cell i is predicted at {place}, the mask "
        f"token is {made.mask_token} ({made.mask_token_id})"
    )
