"""Try the model on three small pictures, and on one of yours."""

from __future__ import annotations

from pathlib import Path
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
from mmdiff.errors import InputError
from mmdiff.loading import DEFAULT

if TYPE_CHECKING:
    from mmdiff.heads.tasks import Generation

PICTURES = Path(__file__).parent.parent / "pictures"
# Two scenes of mmdiff.data.worlds.tabletop that no training run sees, and a plain drawing.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "table.png": ("what colour is the heart?", "how many objects are there?", "is there a star?"),
    "toys.jpg": ("how many triangles are there?", "is there a red star?"),
    "drawing.png": ("what colour is the square?", "how many circles are there?"),
}
OWN_QUESTIONS = ("how many objects are there?", "is there a red circle?")
CAPTION = "caption"


def demo(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PICTURE] [NAME=VALUE...]", help="Your picture, then settings."),
    ] = None,
    animate: Annotated[
        Path | None,
        typer.Option("--animate", metavar="OUT.gif", help="Draw how the first caption fills up."),
    ] = None,
    model: ModelOption = DEFAULT,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try the model on three small pictures, and on one of yours."""
    files, assignments = split_arguments(arguments or [])
    if len(files) > 1:
        raise InputError(f"demo takes one picture, got {len(files)}; use mmdiff caption for more")
    session = Session("caption", model, assignments, device)
    asking = Session("answer", model, assignments, device)
    if animate:
        session.trace_to(animate)
    # Yours first; a picture that cannot be read is told before the model loads.
    plan: dict[str, tuple[str, ...]] = dict.fromkeys(files, OWN_QUESTIONS)
    plan |= {str(PICTURES / name): asked for name, asked in QUESTIONS.items()}
    pictures = {file: read_picture(file).image for file in plan}
    asking.model = session.model
    rows: list[tuple[str, str, Generation]] = []
    for file, asked in plan.items():
        rows += run(session, asking, file, pictures[file], asked)
    if animate:
        session.draw(next(iter(pictures.values())), rows[0][2], animate)
    show(rows, as_json, model)


def run(
    session: Session, asking: Session, file: str, image: Any, questions: tuple[str, ...]
) -> list[tuple[str, str, Generation]]:
    """(picture, what was asked, answer): the caption, then every question."""
    name = Path(file).name
    captions = session.run([([image], None)], [0])
    answers = asking.run(
        [([image], question) for question in questions], list(range(len(questions)))
    )
    asked = (CAPTION, *questions)
    return [(name, what, made) for what, made in zip(asked, captions + answers, strict=True)]


def show(rows: list[tuple[str, str, Generation]], as_json: bool, model: str) -> None:
    if as_json:
        for name, asked, made in rows:
            Report(as_json).result(made, file=name, asked=asked)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("picture", "asked", "answer"):
        table.add_column(column, overflow="fold")
    table.add_column("steps", justify="right")
    before = ""
    for name, asked, made in rows:
        table.add_row(name if name != before else "", asked, made.text, str(made.nfe))
        before = name
    console = Console(highlight=False, markup=False)
    console.print(table)
    seconds = sum(made.seconds for _, _, made in rows)
    chosen = "" if model == DEFAULT else f" --model {model}"
    console.print(f"\n{len(rows)} answers in {seconds:.1f} s. Next:", soft_wrap=True)
    for line in (
        f"mmdiff caption YOUR.png{chosen} --animate caption.gif",
        f'mmdiff answer YOUR.png "what colour is the circle?"{chosen}',
        f"mmdiff chat --image YOUR.png{chosen}",
    ):
        console.print(f"  {line}", soft_wrap=True)
