"""The answers of a run on disk: appended as they come, found again by key.

A key is over the question, the model's fingerprint and every decoding setting, so that nothing is
asked twice and nothing stale is taken for new.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmdiff.errors import DataError

NAME = "samples.jsonl"


@dataclass(frozen=True)
class Sample:
    """One answer. `length` counts tokens up to the first end-of-text."""

    key: str
    id: str
    text: str
    nfe: int
    length: int
    seconds: float


def key_of(*parts: Any) -> str:
    """A short digest of JSON values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Samples:
    """The answers in a run's folder. Of several processes each has a file of its own, and reads
    those of all. What a kill has left of a last line is dropped."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder = folder
        self.path = folder / (f"samples.{rank}.jsonl" if rank else NAME)
        self.known: dict[str, Sample] = {}
        self.lines: dict[str, dict[str, Any]] = {}  # as they stand in the file, verdicts and all
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "a+b")  # noqa: SIM115  # closed by `rewrite`
            self.file.seek(0)
            data = self.file.read()
            self.file.truncate(data.rfind(b"\n") + 1)
            self.read_all()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror})") from error

    def read_all(self) -> None:
        """Learn every whole answer in the folder's files."""
        for path in (self.folder / NAME, *self.others()):
            if path.exists():
                self._read(path)

    def others(self) -> list[Path]:
        """The files of processes other than the first."""
        return sorted(self.folder.glob("samples.*.jsonl"))

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
            try:
                row = json.loads(line)
                sample = Sample(**{name: row[name] for name in Sample.__dataclass_fields__})
            except (ValueError, KeyError, TypeError):
                raise DataError(
                    f"{path} line {number}: is no answer; delete the line, or the file"
                ) from None
            self.known.setdefault(sample.key, sample)
            self.lines.setdefault(sample.key, row)

    def add(self, samples: Sequence[Sample]) -> None:
        """Append answers; they are on the disk when this returns."""
        lines = "".join(json.dumps(asdict(sample)) + "\n" for sample in samples)
        try:
            self.file.write(lines.encode())
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror})") from error
        for sample in samples:
            self.known.setdefault(sample.key, sample)

    def rewrite(self, judged: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """One file again: this run's answers in order of the questions, each with its verdict
        behind it; answers to other questions or with other settings stay, last."""
        first = {key: asdict(self.known[key]) | verdict for key, verdict in judged}
        rows = [*first.values(), *(row for key, row in self.lines.items() if key not in first)]
        self.file.close()
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        for path in self.others():
            path.unlink()


def write_whole(path: Path, text: str) -> None:
    """A file that is there when it is whole. Raises DataError."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error
