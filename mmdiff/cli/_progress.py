"""Progress on stderr: a bar on a terminal, else a line now and then once the work takes a while."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from mmdiff.data.check import Checked

QUIET_SECONDS = 2.0  # work this short shows nothing where there is no terminal
LINE_SECONDS = 10.0  # between two lines


class Progress:
    """Counts `total` things; `note` is free text behind the count, such as a loss."""

    def __init__(self, total: int, unit: str, done: int = 0) -> None:
        self.total, self.unit, self.done = total, unit, done
        self.before = done
        self.began = time.monotonic()
        self.next_line = self.began + QUIET_SECONDS
        self.bar: Bar | None = None
        self.task: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and self.total > 1:
            self.bar = _bar()
            self.bar.start()
            self.task = self.bar.add_task(self.unit, total=self.total, completed=self.done, note="")
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, count: int, note: str = "") -> None:
        self.done += count
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, note=note)
        elif self.done < self.total and time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + LINE_SECONDS
            seconds = time.monotonic() - self.began
            text = f"mmdiff: {self.done} of {self.total} {self.unit}, {seconds:.0f} s"
            if self.done > self.before:
                left = seconds / (self.done - self.before) * (self.total - self.done)
                text += f", {left:.0f} s left"
            text += f"  {note}"
            print(text.rstrip(), file=sys.stderr, flush=True)


def show_rows(name: str, rows: Iterator[Checked]) -> Iterator[Checked]:
    """The rows of a data file as they are checked, with progress."""
    with Progress(100, f"percent of {name} checked") as progress:
        for number, row in enumerate(rows, start=1):
            progress.advance(int(100 * row.before) - progress.done, f"{number} rows")
            yield row


def _bar() -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=True,
        # Results printed meanwhile go above the bar, but never from a file to the terminal.
        redirect_stdout=sys.stdout.isatty(),
    )
