"""Measure the built-in model: accuracy per question type, captions, decoding, timings."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mmdiff.cli._common import DeviceOption, JsonOption, ModelOption, Session, say, say_json
from mmdiff.cli._progress import Progress
from mmdiff.errors import SettingError, nearest
from mmdiff.loading import DEFAULT

BENCHES = ("tiny",)


def bench(
    name: Annotated[str, typer.Argument(help="What to measure: tiny.")] = "tiny",
    model: ModelOption = DEFAULT,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Scenes of each test set; default all.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder for results.json.")
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the built-in model: accuracy per question type, captions, decoding, timings."""
    if name not in BENCHES:
        raise SettingError(f"bench {name!r} is unknown; choose {BENCHES}.{nearest(name, BENCHES)}")
    session = Session("caption", model, [], device)
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
    if output:
        output.mkdir(parents=True, exist_ok=True)
        (output / "results.json").write_text(json.dumps(figures, indent=2) + "\n")
