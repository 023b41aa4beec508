"""Hugging Face data sets on disk: parquet files, and folders written by `save_to_disk`.

Columns are those of a JSON row: conversations or messages, image or images (names, or the pictures
themselves), id.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from mmdiff.data.readers import READERS, Found
from mmdiff.errors import DataError, require

BATCH = 64  # rows read at a time


@READERS.register("parquet")
@READERS.register("arrow")
class Table:
    """An address is a row's number. Rows are read from disk as they are needed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def table(self) -> Any:
        """A `datasets.Dataset` whose rows are arrow's, so that no picture is decoded."""
        datasets = require("datasets", "data", f"reading {self.path.name}")
        make = datasets.load_from_disk if self.path.is_dir() else datasets.Dataset.from_parquet
        try:
            return make(str(self.path)).with_format("arrow")
        except Exception as error:  # whatever pyarrow and datasets raise for a damaged file
            first = (str(error).strip() or repr(error)).splitlines()[0]
            raise DataError(f"{self.path}: cannot be read ({first})") from None

    def scan(self) -> Iterator[Found]:
        size = len(self.table)
        for start in range(0, size, BATCH):
            rows = self.table[start : min(start + BATCH, size)].to_pylist()
            for number, row in enumerate(rows, start=start):
                yield Found(number, f"row {number + 1}", row, number / size)

    def fetch(self, address: Any) -> Any:
        return self.table[address : address + 1].to_pylist()[0]
