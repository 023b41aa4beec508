"""Golden entries: where they lie, what was compared, and with which error."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parents[2]
Json = dict[str, Any]


class NotSupported(Exception):
    """A case that needs something the library does not offer yet; the text says what."""


@dataclass
class Entry:
    """One entry of an index.json, its arrays, and the rows of the report."""

    root: Path
    facts: Json
    rows: list[Json] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def path(self, role: str) -> Path:
        return self.root / self.facts["files"][role]

    @cached_property
    def folder(self) -> Path:
        return self.path("config").parent

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return load_file(self.path("inputs"))

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        return load_file(self.path("outputs"))

    def settings(self, role: str = "settings") -> Json:
        return json.loads(self.path(role).read_text())

    @property
    def ids(self) -> dict[str, int]:
        return self.facts["token_ids"]

    def tolerance(self, name: str) -> Json:
        """atol and rtol of an array: its own, its kind's, or that of logits."""
        given = self.facts["tolerance"]
        for key in (name, name.split("_")[0], "floats", "logits"):
            if isinstance(given.get(key), dict):
                return {"atol": 0.0, "rtol": 0.0} | given[key]
        raise KeyError(name)

    def compare(self, name: str, got: Any, case: str | None = None, **tolerance: float) -> None:
        """Note how far `got` lies from the stored array `name`: exact for integers."""
        expected = self.outputs[name]
        got = torch.as_tensor(got).detach().cpu().reshape(expected.shape)
        self.seen.add(name)
        if expected.is_floating_point():
            limits = tolerance or self.tolerance(name)
            error = float((got.double() - expected.double()).abs().max()) if got.numel() else 0.0
            good = torch.allclose(got.double(), expected.double(), **limits)
        else:
            error = float((got != expected).sum())
            good = bool(torch.equal(got.to(expected.dtype), expected))
        self.note(case or name, "passed" if good else "failed", [name], error)

    def note(
        self, case: str, status: str, arrays: list[str], error: Any = None, **more: Any
    ) -> None:
        row = {"entry": self.facts["id"], "case": case, "status": status, "arrays": arrays}
        self.rows.append(row | {"error": error} | more)

    def skip(self, case: str, why: str, *arrays: str) -> None:
        self.seen |= set(arrays)
        self.note(case, "skipped", list(arrays), reason=why)

    def cases(self, run: Callable[[Entry, Json], Any], kind: str = "cases") -> None:
        """Run every listed case; what is not supported is noted with its reason."""
        for case in self.facts.get(kind, []):
            name = str(case.get("output") or case.get("name") or case.get("function"))
            if "error" in case:
                self.skip(name, f"the published code fails: {case['error']}")
            elif case.get("informative_only"):
                self.skip(name, "informative: need not be matched", name)
            else:
                try:
                    run(self, case)
                except NotSupported as missing:
                    outputs = case.get("output") or list(case.get("outputs", {}).values())
                    arrays = [outputs] if isinstance(outputs, str) else outputs
                    self.skip(name, str(missing), *arrays)


def folders() -> list[Path]:
    """The folders of MMDIFF_GOLDEN, by default tests/golden and ../shared/golden."""
    named = os.environ.get("MMDIFF_GOLDEN")
    if named is not None:
        return [Path(p) for p in named.split(os.pathsep) if p]
    default = (ROOT / "tests" / "golden", ROOT.parent / "shared" / "golden")
    return [p for p in default if (p / "index.json").is_file()]


def entries() -> Iterator[Entry]:
    for folder in folders():
        for facts in json.loads((folder / "index.json").read_text())["entries"]:
            yield Entry(folder, facts)
