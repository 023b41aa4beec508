"""What a benchmark is: rows become questions, answers become marks, marks become figures."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmdiff.data.rows import BadRow, image_source
from mmdiff.errors import DataError, SettingError
from mmdiff.eval.metrics.letter import LETTERS
from mmdiff.registry import Registry

if TYPE_CHECKING:
    from mmdiff.data.readers import Reader

# How lmms-eval's questions end.
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
MAX_LIST = 20_000  # characters of a cell that holds a list
KINDS = {
    "missing_column": "a row without a column that the benchmark has",
    "column_type": "a cell of another type than the benchmark's",
    "bad_options": "options that are no list of two to 26 texts",
    "bad_answer": "no right answer, or one outside the options",
    "duplicate_id": "an id that an earlier row has",
    "no_pair": "a picture with another number of questions than two",
    "missing_image": "a row without the picture that its question shows",
    "refused": "a question that the model cannot be asked, such as a prompt that is too long",
}


class BadQuestion(DataError):
    """A row that cannot be asked or scored: its `kind` of KINDS, and in words what is wrong."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        assert kind in KINDS
        self.kind = kind


@dataclass(frozen=True)
class Question:
    """What is asked, and what counts as right.

    `text` goes to the task's head with the pictures: names under the image root, or bytes of
    files. `answer` is JSON. `groups` names the row of each table the question counts in; questions
    with one `unit` are scored together.
    """

    id: str
    text: Any
    answer: Any
    images: tuple[Any, ...] = ()
    options: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)
    unit: str = ""


@dataclass(frozen=True)
class Mark:
    """An answer judged. `parsed` is None where nothing could be read from it; `score` is the
    protocol's, guesses and all, `strict` that without guesses."""

    score: float
    strict: float
    parsed: Any


@dataclass(frozen=True)
class Judged:
    """A question with the model's answer."""

    question: Question
    said: str
    mark: Mark


Table = list[dict[str, Any]]  # rows of name, num, score


class Task:
    """A benchmark. A new one states its names, turns a row into a question, and judges answers."""

    name: ClassVar[str]
    protocol: str  # names whose rules the score follows
    head: str = "answer"
    cells: int | None = 16  # max_new_tokens where nobody asks for another number; None: the head's
    splits: tuple[str, ...] = ("test", "validation", "val")  # files read, in order of preference
    scale: float = 100.0  # what a score of 1 is shown as
    # How an answer may be found: also by the likelihood of the options' letters or texts.
    ways: tuple[str, ...] = ("generate",)
    spec: str  # as it was asked for, set by `make`

    def __init__(self, option: str = "", metric: str | None = None) -> None:
        if option:
            raise SettingError(f"{self.name}:{option}: {self.name} has no variants")
        if metric:
            raise SettingError(f"--metric {metric}: {self.name} has a score of its own")

    def reader(self, path: Path) -> Reader | None:
        """A reader of a file that only this benchmark has; None for files that all have."""
        return None

    def questions(self, row: dict[str, Any]) -> Iterable[Question]:
        """The questions of a raw row, mostly one. Raises BadQuestion or BadRow."""
        return [self.question(row)]

    def question(self, row: dict[str, Any]) -> Question:
        raise NotImplementedError

    def marks(self, questions: Sequence[Question], said: Sequence[str]) -> list[Mark]:
        """A mark for each answer, in order. By default every answer is judged alone."""
        return [self.mark(*pair) for pair in zip(questions, said, strict=True)]

    def mark(self, question: Question, said: str) -> Mark:
        raise NotImplementedError

    def check(self, questions: Sequence[Question]) -> Iterator[tuple[int, BadQuestion]]:
        """Questions that are bad only beside others, by place."""
        yield from ()

    def parts(self, judged: Sequence[Judged], strict: bool = False) -> list[list[float]]:
        """Lists whose means add up to the score."""
        return [[each.mark.strict if strict else each.mark.score for each in judged]]

    def figures(self, judged: Sequence[Judged]) -> dict[str, float]:
        """What the protocol reports beside the score."""
        return {}

    def tables(self, judged: Sequence[Judged]) -> dict[str, Table]:
        """A table for each name in the questions' groups, rows in order of name."""
        names = dict.fromkeys(name for each in judged for name in each.question.groups)
        return {name: _table(judged, name) for name in names}

    def notes(self) -> list[str]:
        """What a reader of the figures must know: parts that could not be computed."""
        return []


def _table(judged: Sequence[Judged], name: str) -> Table:
    rows: dict[str, list[float]] = {}
    for each in judged:
        if name in each.question.groups:
            rows.setdefault(each.question.groups[name], []).append(each.mark.score)
    return [
        {"name": row, "num": len(scores), "score": sum(scores) / len(scores)}
        for row, scores in sorted(rows.items())
    ]


TASKS: Registry[type[Task]] = Registry(
    "benchmark",
    modules=tuple(
        f"mmdiff.eval.tasks.{name}"
        for name in (
            "mmmu", "mmmu_pro", "vqav2", "textvqa", "chartqa", "docvqa", "pope", "mme",
            "scienceqa", "coco_caption", "llava", "tabletop",
        )
    ),
)  # fmt: skip


def make(spec: str, metric: str | None = None) -> Task:
    """The task that `name` or `name:option` means. Raises SettingError."""
    name, _, option = spec.partition(":")
    task = TASKS.get(name)(option, metric)
    task.spec = spec
    return task


def lettered(options: Sequence[str], form: str = "{}. {}") -> str:
    """The options on lines of their own, each behind its letter."""
    return "\n".join(map(form.format, LETTERS, options))


def plain_mark(score: float, parsed: Any) -> Mark:
    """A mark of a protocol that never guesses."""
    return Mark(float(score), float(score), parsed)


def identifier(row: dict[str, Any], *names: str) -> str:
    """The first of the columns that is there, as text; '' where the row has no id."""
    value = next((row[name] for name in names if row.get(name) is not None), "")
    return str(value)[:200]


def text(row: dict[str, Any], name: str) -> str:
    """A column of text, or of a number written as one. Raises BadQuestion."""
    value = cell(row, name)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadQuestion("column_type", f"{name} must be text, got {type(value).__name__}")
    return str(value)


def cell(row: dict[str, Any], name: str) -> Any:
    """A column that must be there. Raises BadQuestion."""
    if row.get(name) is None:
        listed = ", ".join(map(str, list(row)[:12]))
        raise BadQuestion("missing_column", f"there is no {name!r}; the columns are {listed}")
    return row[name]


def texts(row: dict[str, Any], name: str) -> list[str]:
    """A column of texts: a list, or a cell that holds one as Python or JSON writes it. Raises
    BadQuestion."""
    value = cell(row, name)
    if isinstance(value, str):
        value = _written_list(name, value)
    if not isinstance(value, list | tuple):
        raise BadQuestion("column_type", f"{name} must be a list, got {type(value).__name__}")
    for each in value:
        if isinstance(each, bool) or not isinstance(each, str | int | float):
            raise BadQuestion("column_type", f"{name} must be a list of texts")
    return [str(each) for each in value]


def _written_list(name: str, value: str) -> Any:
    """The list that a cell spells out. Nothing in it is ever run."""
    try:
        if len(value) > MAX_LIST:
            raise ValueError("too long")
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise BadQuestion("column_type", f"{name} is no list: {value[:60]!r}") from None


def options(row: dict[str, Any], name: str) -> tuple[str, ...]:
    """The options of a multiple-choice row. Raises BadQuestion."""
    try:
        found = texts(row, name)
    except BadQuestion as error:
        raise BadQuestion("bad_options", str(error)) from None
    if not 2 <= len(found) <= len(LETTERS):
        raise BadQuestion("bad_options", f"{name} has {len(found)} entries")
    return tuple(found)


def option_letter(row: dict[str, Any], name: str, options: Sequence[str]) -> str:
    """The right option's letter. Raises BadQuestion where it is none of the options'."""
    answer = str(cell(row, name)).strip()
    if answer not in LETTERS[: len(options)] or len(answer) != 1:
        raise BadQuestion("bad_answer", f"{name} {answer[:40]!r} is none of the {len(options)}")
    return answer


def yes_or_no(row: dict[str, Any], name: str) -> str:
    answer = text(row, name).strip().rstrip(".").lower()
    if answer not in ("yes", "no"):
        raise BadQuestion("bad_answer", f"{name} {answer[:40]!r} is neither yes nor no")
    return answer


def image(row: dict[str, Any], name: str) -> str | bytes:
    """A picture's name or bytes. Raises BadQuestion or BadRow."""
    if name not in row:
        cell(row, name)
    if row[name] is None:
        raise BadQuestion("missing_image", f"{name} is empty")
    return image_source(row[name])


def as_row(raw: Any) -> dict[str, Any]:
    """A raw row that a reader found. Raises BadRow."""
    if isinstance(raw, BadRow):
        raise raw
    if not isinstance(raw, dict):
        raise BadRow("not_an_object", f"a row must be an object, got {type(raw).__name__}")
    return raw
