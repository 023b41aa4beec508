"""Finished runs side by side: paired differences with intervals, quality against backbone calls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from mmdiff.errors import DataError
from mmdiff.eval import svg
from mmdiff.eval.report import HEAD, shown_score
from mmdiff.eval.results import ROUNDS, SEED
from mmdiff.eval.samples import NAME


@dataclass(frozen=True)
class Run:
    """A folder that a run has left: its results, and the score of every question by id."""

    folder: str
    results: dict[str, Any]
    scores: dict[str, float]
    calls: dict[str, int]


@dataclass(frozen=True)
class Difference:
    """Run B against run A on the questions of both, as shares: the mean change of a question's
    score, the ends of its 95 % interval by the bootstrap over questions, and of backbone calls."""

    a: str
    b: str
    questions: int
    change: float
    low: float
    high: float
    better: int
    worse: int
    nfe_change: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out no change at all."""
        return self.low > 0 or self.high < 0


def read_run(folder: str | Path) -> Run:
    """A finished run. Raises DataError."""
    path = Path(folder)
    scores: dict[str, float] = {}
    calls: dict[str, int] = {}
    try:
        results = json.loads((path / "results.json").read_text(encoding="utf-8"))
        lines = (path / NAME).read_text(encoding="utf-8").splitlines()
        # This run's answers come first, once each; behind them those of other settings.
        for line in lines[: results["questions"]]:
            row = json.loads(line)
            scores[row["id"]], calls[row["id"]] = row["score"], row["nfe"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        why = "there is no such folder" if not path.is_dir() else repr(error)
        raise DataError(f"{path}: holds no finished run of mmdiff eval TASK ({why})") from None
    return Run(str(folder), results, scores, calls)


def difference(a: Run, b: Run) -> Difference:
    """How B differs from A. Raises DataError for runs of different benchmarks."""
    for name in ("task", "protocol"):
        if a.results[name] != b.results[name]:
            raise DataError(
                f"{b.folder} has {name} {b.results[name]}, {a.folder} {a.results[name]}; "
                "compare runs of one benchmark"
            )
    both = [name for name in a.scores if name in b.scores]
    if not both:
        raise DataError(f"{a.folder} and {b.folder} share no question")
    change = np.array([b.scores[name] - a.scores[name] for name in both])
    calls = np.array([b.calls[name] - a.calls[name] for name in both])
    rng = np.random.default_rng(SEED)
    means = [change[rng.integers(0, len(change), len(change))].mean() for _ in range(ROUNDS)]
    low, high = np.quantile(means, (0.025, 0.975))
    return Difference(
        a.folder,
        b.folder,
        len(both),
        float(change.mean()),
        float(low),
        float(high),
        int((change > 0).sum()),
        int((change < 0).sum()),
        float(calls.mean()),
    )


def page(runs: Sequence[Run], differences: Sequence[Difference]) -> str:
    """The comparison as one page: the runs, the differences from the first, and the plot."""
    title = f"{runs[0].results['task']}: {len(runs)} runs"
    scale = runs[0].results["scale"]
    dots = [
        (Path(run.folder).name, r["nfe"]["mean"], scale * r["score"], 1.96 * scale * r["error"])
        for run in runs
        if (r := run.results)["score"] is not None
    ]
    up = f"{runs[0].results['protocol']}, 95 % interval"
    return "".join(
        [
            HEAD.format(title=escape(title)),
            f"<h1>{escape(title)}</h1>",
            svg.points(dots, "backbone calls per answer (NFE)", up),
            _table(
                ("run", "model", "score", "not parsed", "NFE"),
                [
                    (
                        run.folder,
                        run.results["model"]["name"],
                        shown_score(run.results),
                        f"{100 * (run.results['not_parsed'] or 0):.1f} %",
                        f"{run.results['nfe']['mean'] or 0:.2f}",
                    )
                    for run in runs
                ],
            ),
            "<h2>Changes of a question's mark, in points of 100</h2>",
            _table(DIFFERENCE_HEAD, [difference_row(each) for each in differences]),
            "</body></html>\n",
        ]
    )


DIFFERENCE_HEAD = (
    "run",
    "against",
    "questions",
    "change",
    "95 % interval",
    "better",
    "worse",
    "NFE",
)


def difference_row(each: Difference) -> tuple[str, ...]:
    """A line of the table of differences."""
    return (
        each.b,
        each.a,
        str(each.questions),
        f"{100 * each.change:+.2f}" + ("" if each.clear else " (unclear)"),
        f"[{100 * each.low:+.2f}, {100 * each.high:+.2f}]",
        str(each.better),
        str(each.worse),
        f"{each.nfe_change:+.2f}",
    )


def as_json_row(each: Difference) -> dict[str, Any]:
    return {**asdict(each), "clear": each.clear}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = ("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table><tr>{first}</tr>{''.join(lines)}</table>"
