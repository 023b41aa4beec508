"""Train a model from a recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmdiff.cli._common import JsonOption, say, say_json
from mmdiff.cli._progress import Progress, show_rows
from mmdiff.config import build, merge, parse_assignments, read_yaml, shipped, split_arguments
from mmdiff.errors import (
    InputError,
    MissingExtraError,
    SettingError,
    TrainingError,
    nearest,
)

if TYPE_CHECKING:
    from mmdiff.training.recipe import Recipe


def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=VALUE...]", help="Settings in place of the recipe's."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in output.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a model from a recipe.

    The folder of the setting output loads with --model. Example: mmdiff train tiny
    output=runs/mine max_steps=500 lr=1e-3.
    """
    words, assignments = split_arguments(settings or [])
    if words:
        raise InputError(f"unexpected {words[0]!r} behind the recipe; settings are name=value")
    over = parse_assignments(assignments)
    if resume:
        over["resume"] = True
    made = read_recipe(recipe, over)
    summary = run(made, as_json)
    if summary is None:
        return
    if as_json:
        say_json({"summary": summary})
    else:
        figures = [
            f"{name} {summary[name]:.4f}" for name in ("loss", "validation") if summary[name]
        ]
        words = [f"{summary['steps']} steps", *figures, f"{summary['seconds']:.0f} s"]
        say(f"{summary['output']}: {', '.join(words)}")
    draw_curve(made.output)


def draw_curve(output: str) -> None:
    """loss.png beside the log, where matplotlib is installed."""
    from mmdiff.training.curve import draw

    try:
        draw(Path(output) / "log.jsonl", Path(output) / "loss.png")
    except MissingExtraError as error:
        print(f"mmdiff: note: no loss curve was drawn: {error}", file=sys.stderr)


def read_recipe(name: str, over: dict[str, Any]) -> Recipe:
    """The recipe with the settings `over` in place of its own."""
    from mmdiff.training.recipe import Recipe

    path = find_recipe(name)
    return build(Recipe, merge(_written(path), over), str(path))


def _written(path: Path, depth: int = 0) -> dict[str, Any]:
    """A recipe file's settings, in place of those of the recipe that it is `like`."""
    written = read_yaml(path)
    if isinstance(written.get("objective"), str):  # so that others may change one of its settings
        written["objective"] = {"preset": written["objective"]}
    base = written.pop("like", None)
    if base is None:
        return written
    if depth > 8:
        raise SettingError(f"{path}: its recipes are like each other in a circle")
    return merge(_written(find_recipe(str(base)), depth + 1), written)


def find_recipe(name: str) -> Path:
    """A file as it is, or a shipped recipe by name; SettingError with the nearest names."""
    if Path(name).is_file():
        return Path(name)
    known = shipped("train")
    if name in known:
        return known[name]
    hint = nearest(Path(name).stem, known)
    raise SettingError(
        f"recipe {name!r} is neither a file nor a shipped recipe.{hint} Shipped: {', '.join(known)}"
    )


def run(recipe: Recipe, as_json: bool) -> dict[str, Any] | None:
    """Train with progress on stderr; returns the figures of the last step. Of several processes one
    speaks, and the others return None."""
    from transformers.utils import logging

    from mmdiff.training.loop import Trainer
    from mmdiff.training.sources import open_source

    logging.disable_progress_bar()
    open_source(recipe, watch=show_rows)
    trainer = prepare(Trainer, recipe)
    if not trainer.accelerator.is_main_process:
        trainer.run()
        return None
    for text in trainer.notes:
        print(f"mmdiff: note: {text}", file=sys.stderr)
    # None where a resumed run has no step left to take.
    last: dict[str, Any] = {"loss": None, "validation": None, "seconds": trainer.seconds}
    with Progress(recipe.max_steps, "steps", done=trainer.step) as progress:

        def report(row: dict[str, Any]) -> None:
            rate = row["tokens"] / max(row["seconds"] - last["seconds"], 1e-9)
            last.update(row)
            progress.advance(1, f"loss {row['loss']:.3f}  {rate:.0f} tokens/s")
            if as_json:
                say_json(row)

        folder = trainer.run(report)
    return {
        "output": str(folder),
        "steps": trainer.step,
        "loss": last["loss"],
        "validation": last["validation"],
        "seconds": round(last["seconds"], 2),
    }


def prepare(trainer: Any, recipe: Recipe) -> Any:
    """The Trainer; an output folder that cannot be made is the user's to mend."""
    try:
        return trainer(recipe)
    except OSError as error:
        reason = error.strerror or error
        raise TrainingError(f"output {recipe.output}: cannot be written ({reason})") from error
