"""List the built-in models and the families of checkpoints that load."""

from __future__ import annotations

from typing import Any

from mmdiff.cli._common import JsonOption, say_json
from mmdiff.loading import BUILT_IN

LICENCES = {"mmdiff/tiny": "Apache-2.0"}
FAMILIES = {"mmdiff": "folders that mmdiff train or save_pretrained wrote: --model FOLDER"}


def models(as_json: JsonOption = False) -> None:
    """List the built-in models and the families of checkpoints that load."""
    found = [summarise(name) for name in BUILT_IN]
    if as_json:
        for row in found:
            say_json(row)
        for family, loads in FAMILIES.items():
            say_json({"family": family, "loads": loads})
    else:
        show(found)


def summarise(name: str) -> dict[str, Any]:
    """JSON-able facts about a built-in model."""
    from mmdiff.cli.info import describe

    facts = describe(BUILT_IN[name])
    return {
        "model": name,
        "family": facts["family"],
        "parameters": facts["parameters"]["total"],
        "bytes": facts["stored"]["bytes"],
        "licence": LICENCES[name],
    }


def show(found: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from mmdiff.cli.info import megabytes, millions

    table = Table(box=None, pad_edge=False)
    for column in ("model", "family", "parameters", "size", "licence"):
        table.add_column(column)
    for row in found:
        size, count = megabytes(row["bytes"]), millions(row["parameters"])
        table.add_row(row["model"], row["family"], count, size, row["licence"])
    families = Table(box=None, pad_edge=False)
    families.add_column("family")
    families.add_column("loads", overflow="fold")
    for family, loads in FAMILIES.items():
        families.add_row(family, loads)
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print()
    console.print(families)
