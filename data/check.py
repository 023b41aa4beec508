"""Finding every bad row of a data file before anything is trained on it."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from mmdiff.data.pictures import read
from mmdiff.data.readers import Found, Reader
from mmdiff.data.rows import BadRow, DataRow, read_row

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Checked:
    """A row's verdict: `kind` and `text` of its first fault, '' for a good row.

    `sizes` (width, height) of a good row's pictures; rows with one `group` share a picture;
    `before` is the share of the data that comes before the row. `length` in canvas cells is counted
    where a model's processor is at hand.
    """

    address: Any
    place: str
    id: str
    kind: str = ""
    text: str = ""
    sizes: tuple[tuple[int, int], ...] = ()
    group: str = ""
    before: float = 0.0
    length: int = 0


@dataclass
class Tally:
    """Rows counted by what is wrong with them, and the first of each kind."""

    rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    first: dict[str, Checked] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        return self.kinds.total()

    def add(self, row: Checked, again: bool = False) -> None:
        """Count a row; `again` where it was counted as a good one."""
        self.rows += not again
        if row.kind:
            self.kinds[row.kind] += 1
            self.first.setdefault(row.kind, row)


def check(reader: Reader, root: Path, unique_ids: bool = True) -> Iterator[Checked]:
    """Every row of a file with its verdict, in order; pictures are decoded in several threads.

    With `unique_ids` a second row with an id is bad where both are good otherwise. Sizes of
    pictures that many rows show are remembered.
    """
    known: dict[str, tuple[int, int] | BadRow] = {}

    def look(found: Found) -> Checked:
        named = found.raw.get("id") if isinstance(found.raw, dict) else None
        verdict = Checked(found.address, found.place, _shown(named), before=found.before)
        try:
            row = row_of(found)
            sizes = tuple(_size(source, root, known) for source in row.images)
        except BadRow as error:
            return replace(verdict, kind=error.kind, text=str(error))
        return replace(verdict, sizes=sizes, group=_group(row, found.place))

    seen: set[str] = set()
    for each in in_order(look, reader.scan()):
        if unique_ids and not each.kind and each.id in seen:
            each = replace(each, kind="duplicate_id", text=f"an earlier row has the id {each.id!r}")
        if not each.kind and each.id:
            seen.add(each.id)
        yield each


def row_of(found: Found) -> DataRow:
    """Raises BadRow, also one that the reader has met."""
    if isinstance(found.raw, BadRow):
        raise found.raw
    return read_row(found.raw)


def in_order(work: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """`work` of every item, in order, some of them ahead in threads; items are not held in
    memory."""
    threads = min(8, os.cpu_count() or 1)
    waiting: deque[Future[U]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 4 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _size(
    source: str | bytes, root: Path, known: dict[str, tuple[int, int] | BadRow]
) -> tuple[int, int]:
    if isinstance(source, bytes):
        return read(source, root).size
    if source not in known:
        try:
            known[source] = read(source, root).size
        except BadRow as error:
            known[source] = error
    found = known[source]
    if isinstance(found, BadRow):
        raise BadRow(found.kind, str(found))
    return found


def _group(row: DataRow, place: str) -> str:
    named = [source for source in row.images if isinstance(source, str)]
    return named[0] if named else row.id or place


def _shown(value: Any) -> str:
    """An id for a report: whatever it is, it becomes text that can be written."""
    if value is None:
        return ""
    return str(value).encode("utf-8", "backslashreplace").decode()[:200]
