"""Score a model on a benchmark, or compare finished runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmdiff.cli._common import DeviceOption, JsonOption, ModelOption, Session, say, say_json
from mmdiff.cli._progress import Progress
from mmdiff.errors import InputError, SettingError
from mmdiff.loading import DEFAULT

if TYPE_CHECKING:
    from mmdiff.eval.runner import Plan

COMPARE = "compare"


def eval(
    task: Annotated[
        str,
        typer.Argument(metavar="TASK", help="mmmu, vqav2, nlvr, tabletop, llava:FILE, or compare."),
    ],
    rest: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Decoding settings; of compare: run folders."
        ),
    ] = None,
    model: ModelOption = DEFAULT,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="A data file, or a folder of the benchmark's files."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", help="The run's folder, where it also goes on. Default: runs/eval-TASK."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Rows of the data; default all.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="Of llava: exact, anls, relaxed, cider or rouge_l."),
    ] = None,
    by: Annotated[
        str,
        typer.Option("--by", help="generate; or the likeliest of the options: letters, texts."),
    ] = "generate",
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Of --by: masks drawn for an option's text.")
    ] = 32,
    image_root: Annotated[
        Path | None,
        typer.Option("--image-root", metavar="DIR", help="Where pictures are, as in check."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Questions asked together.")
    ] = 32,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> int:
    """Score a model on a benchmark, or compare finished runs.

    Writes results.json, samples.jsonl with every answer and report.html; exit code 2 where rows
    were bad. Examples: mmdiff eval mmmu --data MMMU --output runs/mmmu steps=8; mmdiff eval compare
    runs/a runs/b --output runs/ab.
    """
    if task == COMPARE:
        return compare(rest or [], output, as_json)
    from mmdiff.eval.options import check_way
    from mmdiff.eval.runner import evaluate, plan, settings_of
    from mmdiff.eval.tasks.base import make

    benchmark = make(task, metric)
    output = output or Path("runs", f"eval-{benchmark.name}")
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file; name a folder")
    check_way(benchmark, by)
    own = [f"{name}={value}" for name, value in settings_of(benchmark, {}).items()]
    rank, device = _process(device)
    session = Session(benchmark.head, model, [*own, *(rest or [])], device)
    made = plan(benchmark, data, limit, image_root)
    if not rank:
        _tell_bad(made)
    with Progress(0 if rank else len(made.asked), "questions") as progress:
        results = evaluate(
            session.model,
            made,
            output=output,
            name=model,
            by=by,
            samples=samples,
            batch_size=batch_size,
            progress=progress.advance,
            **session.settings,
        )
    if not rank:
        tell_run(results, output, as_json)
    return 2 if results["data"]["bad_rows"] else 0


def tell_run(results: dict[str, Any], output: Path, as_json: bool) -> None:
    """The figures on stdout, and on stderr how many rows were left out."""
    if as_json:
        for name, rows in results["tables"].items():
            for row in rows:
                say_json({"table": name, **row})
        say_json({"summary": {name: results[name] for name in SUMMARY}})
    else:
        tell(results)
        say(f"{output / 'report.html'}")
    if bad := results["data"]["bad_rows"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in results["data"]["kinds"].items())
        text = f"{bad} rows were left out ({kinds}); {output / 'bad_rows.jsonl'} lists them"
        print(f"mmdiff: error: {text}", file=sys.stderr)


SUMMARY = (
    "task", "protocol", "score", "error", "strict_score", "strict_error", "not_parsed", "questions",
    "figures", "answers", "nfe", "tokens_per_forward", "data", "warnings", "time",
)  # fmt: skip


def _process(device: str | None) -> tuple[int, str | None]:
    """Which process of an `accelerate launch` this is, and the device it works on."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, device
    from mmdiff.eval.runner import processes

    state = processes()
    return state.process_index, device or str(state.device)


def _tell_bad(made: Plan) -> None:
    for row in made.bad[:5]:
        print(f"mmdiff: note: {row.place}: {row.kind}: {row.text}", file=sys.stderr)
    if len(made.bad) > 5:
        print(f"mmdiff: note: and {len(made.bad) - 5} more bad rows", file=sys.stderr)


def tell(results: dict[str, Any]) -> None:
    """The figures as a plain table."""
    from mmdiff.eval.report import shown_score

    strict = shown_score(results, "strict_score", "strict_error")
    share = results["not_parsed"]
    rows = [
        (results["protocol"], shown_score(results)),
        ("without guesses", strict),
        ("not parsed", "none" if share is None else f"{share:.1%}"),
        ("questions", str(results["questions"])),
        *((name, f"{value:.4g}") for name, value in results["figures"].items()),
    ]
    if results["questions"]:
        rows.append(("NFE per answer", f"{results['nfe']['mean']:.2f}"))
        rows.append(("seconds per answer", f"{results['time']['seconds_per_question']:.3f}"))
    for name, value in rows:
        say(f"{name:<28}{value}")
    for name, table in results["tables"].items():
        say(f"\nby {name}")
        for row in table:
            say(f"  {row['name']:<40}{row['num']:>7}{results['scale'] * row['score']:>9.1f}")
    for note in results["warnings"]:
        say(f"note: {note}")


def compare(folders: list[str], output: Path | None, as_json: bool) -> int:
    """The first run against each of the others."""
    from mmdiff.eval.compare import (
        DIFFERENCE_HEAD,
        as_json_row,
        difference,
        difference_row,
        page,
        read_run,
    )
    from mmdiff.eval.samples import write_whole

    if len(folders) < 2:
        raise SettingError("compare needs two run folders or more: mmdiff eval compare A B")
    runs = [read_run(folder) for folder in folders]
    found = [difference(runs[0], run) for run in runs[1:]]
    if as_json:
        for each in found:
            say_json(as_json_row(each))
        say_json({"summary": {"runs": len(runs), "clear": sum(each.clear for each in found)}})
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(*DIFFERENCE_HEAD, title="points of 100", title_justify="left")
        for each in found:
            table.add_row(*difference_row(each))
        Console(width=None if Console().is_terminal else 120).print(table)
    if output:
        output.mkdir(parents=True, exist_ok=True)
        write_whole(output / "compare.html", page(runs, found))
    return 0
