"""JSON (one list of rows) and JSON lines. Lines are read one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from mmdiff.data.readers import READERS, Found
from mmdiff.data.rows import BadRow, TwiceDict
from mmdiff.errors import DataError


@READERS.register("jsonl")
class Lines:
    """An address is the byte at which a line begins. Blank lines are no rows."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def scan(self) -> Iterator[Found]:
        size = self.path.stat().st_size
        with open(self.path, "rb") as file:
            address = 0
            for number, line in enumerate(file, start=1):
                if line.strip():
                    raw = parse_or_fault(line)
                    yield Found(address, f"line {number}", raw, address / size)
                address += len(line)

    def fetch(self, address: Any) -> Any:
        with open(self.path, "rb") as file:
            file.seek(address)
            return parse(file.readline())


@READERS.register("json")
class Rows:
    """A list of rows, which is read whole; an address is a row's number."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def rows(self) -> list[Any]:
        rows = parse(self.path.read_bytes())
        if not isinstance(rows, list):
            raise DataError(f"{self.path}: the file must be a list of rows: [{{...}}, {{...}}]")
        return rows

    def scan(self) -> Iterator[Found]:
        try:
            rows = self.rows
        except BadRow as error:
            yield Found(0, "whole file", error)
            return
        for number, row in enumerate(rows):
            yield Found(number, f"row {number + 1}", row, number / len(rows))

    def fetch(self, address: Any) -> Any:
        return self.rows[address]


def parse(data: bytes) -> Any:
    """JSON of a file or line. Bytes that are not UTF-8 become half characters, which `read_row`
    finds in the row that holds them. Raises BadRow."""
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column" if "\n" in text.strip() else "column"
        raise BadRow("broken_json", f"{error.msg} at {where} {error.colno}") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, lists in lists
        raise BadRow("broken_json", "too deep, or a number too long, to be read") from None


def parse_or_fault(data: bytes) -> Any:
    try:
        return parse(data)
    except BadRow as error:
        return error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    return made if len(made) == len(pairs) else TwiceDict(made)
