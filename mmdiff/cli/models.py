"""List the built-in models and the families of checkpoints that load."""

from __future__ import annotations

from typing import Any

from mmdiff.cli._common import JsonOption, say_json
from mmdiff.loading import BUILT_IN

LICENCES = {"mmdiff/tiny": "Apache-2.0"}
OWN = "what mmdiff train and convert write"


def models(as_json: JsonOption = False) -> None:
    """List the built-in models and the families of checkpoints that load."""
    found, known = [summarise(name) for name in BUILT_IN], families()
    if as_json:
        for row in [*found, *known]:
            say_json(row)
    else:
        show(found, known)


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


def families() -> list[dict[str, Any]]:
    """JSON-able facts about the families of checkpoints: known hub ids with their licence."""
    from mmdiff.checkpoints.base import FAMILIES, NATIVES

    found: list[Any] = [(name, FAMILIES.get(name)) for name in FAMILIES.names()]
    found += [(name, NATIVES.get(name)) for name in NATIVES.names()]
    return [{"family": name, "title": f.title, "hub": dict(f.hub)} for name, f in found]


def show(found: list[dict[str, Any]], known: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from mmdiff.cli.info import megabytes, millions

    table = Table(box=None, pad_edge=False)
    for column in ("model", "family", "parameters", "size", "licence"):
        table.add_column(column)
    for row in found:
        size, count = megabytes(row["bytes"]), millions(row["parameters"])
        table.add_row(row["model"], row["family"], count, size, row["licence"])
    loads = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("family", "title", "hub id", "licence"):
        loads.add_column(column, overflow="fold")
    for row in known:
        ids, licences = "\n".join(row["hub"]), "\n".join(row["hub"].values())
        own = OWN if row["family"] == "mmdiff" else ""
        loads.add_row(row["family"], row["title"], ids or own, licences)
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print("\n--model loads a folder or a hub id of these families:")
    console.print(loads)
