"""Every decoding rule on the tabletop world: quality, backbone calls, time; a table and a plot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.config import shipped
from mmdiff.decoding.choose import SCHEDULES
from mmdiff.decoding.rules import RULES, named
from mmdiff.decoding.settings import make_decoding
from mmdiff.errors import SettingError, require
from mmdiff.eval.tabletop import (
    Result,
    accuracy,
    answer_set,
    caption_set,
    nfe_ratio,
    paired_interval,
)
from mmdiff.heads.base import HEADS

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel

HEAD = {"caption": "caption", "vqa": "answer"}
SETS: dict[str, Callable[..., list[Result]]] = {
    "caption": caption_set,
    "vqa": partial(answer_set, name="vqa"),
}
# One cell per step, the most confident one first: what every other way is compared with.
PLAIN: dict[str, Any] = {
    "accept": "schedule",
    "order": "confidence",
    "schedule": "linear",
    "threshold": 0.9,
    "steps": None,
    "cache": "auto",
    "remask": "none",
    "stop": "end_of_text",
}
COUNTED = ("accept", "order")  # rules tried with few steps; others with accept=threshold


@dataclass(frozen=True)
class Way:
    """A row of the table before it is measured."""

    name: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A way as measured; `error` says why it is refused for this model, in place of figures."""

    rule: str
    settings: dict[str, Any]
    quality: float = 0.0  # share of wholly true captions, or of right answers
    change: tuple[float, float, float] = (0.0, 0.0, 0.0)  # from the first way, and its 95 % ends
    nfe: float = 0.0
    nfe_per_token: float = 0.0
    fewer_nfe: float = 1.0  # times as many calls as this one in the first way
    tokens_per_second: float = 0.0
    outside: float = 0.0  # share of decoding's wall time spent outside the model
    error: str = ""
    results: list[Result] = field(default_factory=list, repr=False)

    def figures(self) -> dict[str, Any]:
        """As JSON: the figures, or the error."""
        if self.error:
            return {"rule": self.rule, "settings": self.settings, "error": self.error}
        return {k: v for k, v in vars(self).items() if k not in ("results", "error")}


def ways(cells: int) -> list[Way]:
    """Every registered rule and schedule and every preset, for answers of `cells` cells.

    What counts steps takes a quarter of them. Settings that come twice are measured once.
    """
    few = PLAIN | {"steps": max(1, cells // 4)}
    listed = [Way("one cell per step", PLAIN), Way("the checkpoint's own", {})]
    for setting, registry in RULES.items():
        base = few if setting in COUNTED else few | {"accept": "threshold"}
        rules = registry.names()
        listed += [Way(f"{setting}={name}", base | named(setting, name)) for name in rules]
    listed += [Way(f"schedule={name}", few | {"schedule": name}) for name in SCHEDULES]
    listed += [Way(f"preset={name}", {"preset": name}) for name in shipped("decode")]
    first: dict[str, Way] = {}
    for way in listed:
        first.setdefault(repr(sorted(way.settings.items())), way)
    return list(first.values())


def picked(listed: list[Way], only: list[str]) -> list[Way]:
    """The first way, which others are compared with, and those whose name holds one of the texts;
    all where there are none. Raises SettingError for a text that no name holds."""
    for text in only:
        if not any(text in way.name for way in listed):
            raise SettingError(
                f"no row of the table is called {text!r}; leave --only out to see all"
            )
    first, *rest = listed
    return [first, *(way for way in rest if not only or any(text in way.name for text in only))]


def answer_cells(model: MMDiffModel, task: str) -> int:
    """Cells of the answers of a task, where nobody asks for another number."""
    return make_decoding(HEADS.get(HEAD[task]).defaults, model.config.decoding).max_new_tokens


def measure(
    model: MMDiffModel,
    task: str,
    limit: int,
    chosen: list[Way],
    progress: Callable[[int], None] | None = None,
) -> Iterator[Row]:
    """One row for each way, over the first `limit` scenes of the task's test set."""
    decode = SETS[task]
    warm = PLAIN | {"accept": "threshold", "threshold": 0.0}
    decode(model, limit=1, **warm)  # the first call of a process is slow
    plain: Row | None = None
    for way in chosen:
        try:
            results = decode(model, limit=limit, progress=progress, **way.settings)
        except SettingError as error:
            if progress:
                progress(limit)
            yield Row(way.name, way.settings, error=str(error))
            continue
        row = row_of(way, results, plain)
        plain = plain or row
        yield row


def row_of(way: Way, results: list[Result], plain: Row | None) -> Row:
    """The figures of a way's results; `plain` is the row it is compared with."""
    seconds = sum(r.seconds for r in results)
    nfe = sum(r.nfe for r in results) / len(results)
    return Row(
        rule=way.name,
        settings=way.settings,
        quality=accuracy(results),
        change=paired_interval(plain.results, results) if plain else (0.0, 0.0, 0.0),
        nfe=nfe,
        nfe_per_token=nfe_ratio(results),
        fewer_nfe=plain.nfe / max(nfe, 1e-9) if plain else 1.0,
        tokens_per_second=sum(r.length for r in results) / max(seconds, 1e-9),
        outside=sum(r.outside * r.seconds for r in results) / max(seconds, 1e-9),
        results=results,
    )


def front(rows: list[Row]) -> list[Row]:
    """The rows that no row with as few calls equals in quality, by calls."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.nfe, -row.quality)):
        if not best or row.quality > best[-1].quality:
            best.append(row)
    return best


def plot(rows: list[Row], task: str, target: Path) -> None:
    """Quality over backbone calls as a PNG: a point for each row with figures, the front by name.

    Raises MissingExtraError without matplotlib.
    """
    require("matplotlib", "plot", "a plot")
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    rows = [row for row in rows if not row.error]
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.rule.partition("=")[0], []).append(row)
    for number, (group, members) in enumerate(groups.items()):
        nfe, quality = [row.nfe for row in members], [100 * row.quality for row in members]
        axes.scatter(nfe, quality, s=24, color=f"C{number}", label=group, zorder=2)
    best = front(rows)
    axes.step(
        [row.nfe for row in best], [100 * row.quality for row in best], "k:", where="post", lw=1
    )
    for row in best:
        place = (row.nfe, 100 * row.quality)
        axes.annotate(row.rule, place, (5, -10), textcoords="offset points", fontsize=8)
    what = "wholly true captions (%)" if task == "caption" else "right answers (%)"
    axes.set(xlabel="backbone calls per answer (NFE)", ylabel=what)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(target, dpi=150)
