"""Data files: raw rows in order, and any of them again. One file per kind of container."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmdiff.errors import DataError, nearest
from mmdiff.registry import Registry


@dataclass(frozen=True)
class Found:
    """A raw row, or the fault that hides it; `address` finds it again, `place` tells a person,
    `before` is the share of the data that comes before it."""

    address: Any
    place: str
    raw: Any
    before: float = 0.0


class Reader(Protocol):
    """One data file, made from its path."""

    def scan(self) -> Iterator[Found]:
        """Every row, once, in order."""

    def fetch(self, address: Any) -> Any:
        """The raw row at an address of `scan`."""


READERS: Registry[type[Reader]] = Registry(
    "data format",
    modules=("mmdiff.data.json_files", "mmdiff.data.tar_files", "mmdiff.data.hf_files"),
)
SHARDED = ("tar", "parquet")


class Shards:
    """Several files as one."""

    def __init__(self, files: list[Path]) -> None:
        self.names = [file.name for file in files]
        self.readers = [READERS.get(file.suffix[1:])(file) for file in files]  # type: ignore[call-arg]

    def scan(self) -> Iterator[Found]:
        for number, reader in enumerate(self.readers):
            for found in reader.scan():
                place = f"{self.names[number]} {found.place}"
                before = (number + found.before) / len(self.readers)
                yield Found((number, found.address), place, found.raw, before)

    def fetch(self, address: Any) -> Any:
        number, inside = address
        return self.readers[number].fetch(inside)


def open_data(path: str | Path) -> Reader:
    """The reader of a .json, .jsonl, .tar or .parquet file, of a folder that holds one of the first
    two (train.* where there are several) or shards of the others, or of a saved HF data set.

    Raises DataError where there is none.
    """
    path = data_file(path)
    if not path.is_dir():
        return READERS.get(path.suffix[1:].lower())(path)  # type: ignore[call-arg]
    if (path / "state.json").is_file():
        return READERS.get("arrow")(path)  # type: ignore[call-arg]
    return Shards(_shards(path))


def data_file(path: str | Path) -> Path:
    """The one file that a path means, or the folder where it holds shards or a saved data set."""
    path = Path(path)
    if not path.exists():
        folder = path.parent
        names = [each.name for each in folder.iterdir()] if folder.is_dir() else []
        hint = nearest(path.name, names) or " Check the path."
        raise DataError(f"{path}: there is no such data file.{hint}")
    if path.is_dir():
        if (path / "state.json").is_file() or _shards(path):
            return path
        files = [each for each in sorted(path.iterdir()) if each.suffix in (".json", ".jsonl")]
        chosen = files if len(files) == 1 else [each for each in files if each.stem == "train"]
        if len(chosen) != 1:
            listed = ", ".join(each.name for each in files[:8]) or "no data file"
            raise DataError(f"{path}: holds {listed}; name the file to read")
        return chosen[0]
    known = [name for name in READERS.names() if name != "arrow"]
    if path.suffix[1:].lower() not in known:
        raise DataError(f"{path}: data files end in .{', .'.join(known)}")
    return path


def fingerprint(path: Path) -> str:
    """SHA-256 of a data file, or of all that a folder of shards or a saved data set holds."""
    if not path.is_dir():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = _shards(path) or sorted(each for each in path.iterdir() if each.is_file())
    listed = "".join(f"{file.name} {fingerprint(file)}\n" for file in files)
    return hashlib.sha256(listed.encode()).hexdigest()


def _shards(folder: Path) -> list[Path]:
    for kind in SHARDED:
        files = sorted(folder.glob(f"*.{kind}"))
        if files:
            return files
    return []
