"""Where a benchmark's questions come from: data files on disk, or a world that is built in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mmdiff.data.pictures import data_root, find, read
from mmdiff.data.readers import Reader, Shards, open_data
from mmdiff.data.rows import BadRow
from mmdiff.errors import DataError, SettingError
from mmdiff.eval.tasks.base import BadQuestion, Question, Task, as_row
from mmdiff.eval.tasks.tabletop import Tabletop

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".parquet", ".jsonl", ".json")


@dataclass(frozen=True)
class Asked:
    """A question as found: `place` tells a person where, `address` finds it again, `digest` is over
    all that is asked, pictures included."""

    question: Question
    place: str
    address: Any
    digest: str


@dataclass(frozen=True)
class Bad:
    """A row that cannot be asked or scored."""

    place: str
    id: str
    kind: str
    text: str


class Source(Protocol):
    """A benchmark's data."""

    name: str

    def rows(self) -> Iterator[tuple[str, Any, Any]]:
        """(place, address, raw row or the fault that hides it), in order."""

    def fingerprint(self, image: Any) -> str:
        """A digest of a picture. Raises BadRow where it is not there."""

    def pictures(self, task: Task, asked: Asked) -> list[Image.Image]:
        """The pictures of a question. Raises BadRow."""


class Files:
    """Rows of data files; bytes of pictures are not kept in memory."""

    def __init__(self, reader: Reader, root: Path, name: str) -> None:
        self.reader, self.root, self.name = reader, root, name
        self.known: dict[str, str] = {}

    def rows(self) -> Iterator[tuple[str, Any, Any]]:
        for found in self.reader.scan():
            yield found.place, found.address, found.raw

    def fingerprint(self, image: str | bytes) -> str:
        if isinstance(image, bytes):
            return hashlib.sha256(image).hexdigest()
        if image not in self.known:
            with open(find(image, self.root), "rb") as file:
                self.known[image] = hashlib.file_digest(file, "sha256").hexdigest()
        return self.known[image]

    def pictures(self, task: Task, asked: Asked) -> list[Image.Image]:
        address, number = asked.address
        question = list(task.questions(as_row(self.reader.fetch(address))))[number]
        return [read(image, self.root) for image in question.images]


class World:
    """The scenes of a built-in world."""

    name = "built in"

    def __init__(self, task: Tabletop) -> None:
        self.task = task

    def rows(self) -> Iterator[tuple[str, Any, Any]]:
        for number, row in enumerate(self.task.rows(), start=1):
            yield f"scene {number}", number, row

    def fingerprint(self, image: Any) -> str:
        return _digest(repr(image))

    def pictures(self, task: Task, asked: Asked) -> list[Image.Image]:
        from mmdiff.data.worlds.tabletop import render

        return [render(scene) for scene in asked.question.images]


def open_source(task: Task, data: str | Path | None, image_root: str | Path | None) -> Source:
    """The data of a task. Raises DataError for data that are not there, SettingError where none are
    named."""
    if isinstance(task, Tabletop):
        if data is not None or image_root is not None:
            raise SettingError(f"{task.name} is built in: leave out --data and --image-root")
        return World(task)
    data = data if data is not None else getattr(task, "file", "") or None
    if data is None:
        raise SettingError(f"{task.name} needs data: --data FILE or FOLDER")
    path = Path(data)
    if path.is_dir() and not (path / "state.json").is_file():
        files = choose(path, task)
        if len(files) > 1:
            return Files(_shards(files, path), data_root(path, image_root), str(data))
        path = files[0]
    return Files(task.reader(path) or open_data(path), data_root(path, image_root), str(data))


def choose(folder: Path, task: Task) -> list[Path]:
    """A folder's data files of the first split of the task's that is there, never those to train
    on; its only file where it names no split. Raises DataError."""
    if (folder / "dataset_dict.json").is_file():
        saved = [folder / split for split in task.splits if (folder / split).is_dir()]
        if saved:
            return saved[:1]
    left_out = getattr(task, "left_out", None)
    files = [
        file
        for suffix in SUFFIXES
        for file in sorted(folder.rglob(f"*{suffix}"))
        if not left_out or left_out not in str(file)
    ]
    for split in task.splits:
        named = [file for file in files if split in (file.parent.name, _split(file))]
        if named:
            return [file for file in named if file.suffix == named[0].suffix]
    rest = [file for file in files if file.parent == folder and _split(file) != "train"]
    if len(rest) == 1:
        return rest
    splits = ", ".join(f"{split}.json" for split in task.splits)
    raise DataError(
        f"{folder}: holds no data file of {task.name}; there must be {splits}, "
        f"{task.splits[0]}-*.parquet, or one file alone. Files to train on are not read"
    )


def _split(file: Path) -> str:
    """The split in names such as test.json, validation-00000-of-00001.parquet, val_2.jsonl."""
    return file.stem.lower().replace("_", "-").partition("-")[0]


def _shards(files: list[Path], folder: Path) -> Shards:
    shards = Shards(files)
    shards.names = [str(file.relative_to(folder)) for file in files]
    return shards


def questions(
    task: Task, source: Source, limit: int | None = None
) -> tuple[list[Asked], list[Bad]]:
    """The good questions of the first `limit` rows, and the bad rows. Nothing is decoded yet, but
    every picture must be there."""
    good: list[Asked] = []
    bad: list[Bad] = []
    ids: set[str] = set()
    for count, (place, address, raw) in enumerate(source.rows()):
        if limit is not None and count >= limit:
            break
        try:
            for number, question in enumerate(task.questions(as_row(raw))):
                asked = _asked(task, source, question, place, (address, number))
                if asked.question.id in ids:
                    raise BadQuestion("duplicate_id", f"an earlier row has {question.id[:60]!r}")
                ids.add(asked.question.id)
                good.append(asked)
        except (BadRow, BadQuestion) as error:
            bad.append(Bad(place, printable(_shown(raw)), error.kind, printable(str(error))))
    alone = dict(task.check([asked.question for asked in good]))
    bad += [
        Bad(good[n].place, good[n].question.id, error.kind, str(error))
        for n, error in alone.items()
    ]
    return [asked for n, asked in enumerate(good) if n not in alone], bad


def _asked(task: Task, source: Source, question: Question, place: str, address: Any) -> Asked:
    pictures = [source.fingerprint(image) for image in question.images]
    named = question.id or place.replace(" ", "-") + f"/{address[1]}"
    kept = tuple(image for image in question.images if not isinstance(image, bytes))
    groups = {name: printable(row)[:80] for name, row in question.groups.items()}
    made = replace(question, id=printable(named), images=kept, groups=groups)
    _check_text([named, made.text, made.answer, made.options, made.groups])
    return Asked(made, place, address, _digest([task.head, named, made.text, pictures]))


def printable(text: str) -> str:
    """Text that a terminal shows and does not obey."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _check_text(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadRow("encoding", "the row holds text that is not UTF-8") from None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _shown(raw: Any) -> str:
    """A bad row's id, whatever it is, as text that can be written."""
    names = ("id", "question_id", "questionId", "image_id")
    found = next((raw[n] for n in names if isinstance(raw, dict) and raw.get(n) is not None), "")
    return str(found).encode("utf-8", "backslashreplace").decode()[:200]
