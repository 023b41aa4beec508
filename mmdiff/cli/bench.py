"""Measure a model: the built-in one, or every decoding rule."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmdiff.cli._common import DeviceOption, JsonOption, ModelOption, Session, say, say_json
from mmdiff.cli._progress import Progress
from mmdiff.errors import InputError, SettingError, nearest, require
from mmdiff.loading import DEFAULT

if TYPE_CHECKING:
    from mmdiff.eval.decoding import Row

BENCHES = ("tiny", "decode")
TASKS = ("caption", "vqa")
FEW = 32  # scenes of `decode` where nothing else is asked for


def bench(
    name: Annotated[str, typer.Argument(help="What to measure: tiny or decode.")] = "tiny",
    model: ModelOption = DEFAULT,
    task: Annotated[str, typer.Option("--task", help="Of decode: caption or vqa.")] = "caption",
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help=f"Scenes of each test set; default all, decode {FEW}."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Of decode: rows whose name holds this; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder for results.json, and decode's plot.")
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on the tabletop world's test sets.

    `tiny`: accuracy per question type, captions, decoding, timings of the built-in model.
    `decode`: quality, backbone calls and time of every decoding rule and preset, with a plot.
    """
    for value, known in ((name, BENCHES), (task, TASKS)):
        if value not in known:
            hint = nearest(value, known)
            raise SettingError(f"bench {value!r} is unknown; choose {known}.{hint}")
    head = "answer" if name == "decode" and task == "vqa" else "caption"
    if output and name == "decode":
        require("matplotlib", "plot", "the plot of bench decode")
    if output and output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file; name a folder")
    session = Session(head, model, [], device)
    if name == "tiny":
        results = _tiny(session, limit, as_json)
    else:
        results = _decode(session, task, limit or FEW, only or [], output, as_json)
    if output:
        output.mkdir(parents=True, exist_ok=True)
        (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")


def _tiny(session: Session, limit: int | None, as_json: bool) -> list[dict[str, Any]]:
    from mmdiff.data.worlds.tabletop_sets import SETS
    from mmdiff.eval.built_in import measure

    # Questions, again blind; captions twice.
    passes = {"vqa": 2, "caption": 2, "vqa_held_out": 1}
    total = sum(n * min(limit or SETS[s].scenes, SETS[s].scenes) for s, n in passes.items())
    figures = []
    with Progress(total, "scenes") as progress:
        for figure in measure(session.model, limit, progress.advance):
            figures.append(asdict(figure))
            if as_json:
                say_json(figures[-1])
            else:
                mark = {True: "ok", False: "MISSED", None: ""}[figure.held]
                say(f"{figure.what:<52}{figure.value:<42}{figure.wanted:<22}{mark}".rstrip())
    missed = [figure["what"] for figure in figures if figure["held"] is False]
    if as_json:
        say_json({"summary": {"figures": len(figures), "missed": missed}})
    return figures


def _decode(
    session: Session,
    task: str,
    limit: int,
    only: list[str],
    output: Path | None,
    as_json: bool,
) -> list[dict[str, Any]]:
    from mmdiff.data.worlds.tabletop_sets import SETS
    from mmdiff.eval.decoding import answer_cells, measure, picked, plot, ways

    limit = min(limit, SETS[task].scenes)
    chosen = picked(ways(answer_cells(session.model, task)), only)
    rows = []
    with Progress(limit * len(chosen), "scenes") as progress:
        for row in measure(session.model, task, limit, chosen, progress.advance):
            rows.append(row)
            if as_json:
                say_json(row.figures())
    figures = [row.figures() for row in rows]
    if as_json:
        say_json({"summary": {"task": task, "scenes": limit, "rows": len(rows)}})
    else:
        _table(rows, task, limit)
    if output:
        output.mkdir(parents=True, exist_ok=True)
        plot(rows, task, output / "decode.png")
    return figures


def _table(rows: list[Row], task: str, scenes: int) -> None:
    """The rows on stdout."""
    from rich.console import Console
    from rich.table import Table

    what = "true" if task == "caption" else "right"
    table = Table(title=f"{task}, {scenes} scenes", title_justify="left")
    table.add_column("rule", overflow="fold")
    for name in (what, "change, 95 %", "NFE", "per token", "fewer", "tokens/s", "outside"):
        table.add_column(name, justify="right", no_wrap=True)
    refused = []
    for row in rows:
        if row.error:
            refused.append(row)
            continue
        change, low, high = (100 * value for value in row.change)
        table.add_row(
            row.rule,
            f"{row.quality:.1%}",
            f"{change:+.1f} [{low:+.1f}, {high:+.1f}]",
            f"{row.nfe:.1f}",
            f"{row.nfe_per_token:.2f}",
            f"{row.fewer_nfe:.1f}x",
            f"{row.tokens_per_second:.0f}",
            f"{row.outside:.1%}",
        )
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table)
    for row in refused:
        say(f"{row.rule}: not for this model ({row.error})")
