"""MMMU: 30 subjects, letters and open answers, up to seven pictures a question.

`mmmu` asks with the official prompt (llava1.5.yaml) and scores as MMMU's own code; `mmmu:lmms_eval`
asks and parses letters as lmms-eval; `mmmu:interleaved` as that, with the pictures where the text
names them. Open answers are scored by MMMU's rules in all three (lmms-eval 0.7.2 marks every open
answer wrong).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from mmdiff.errors import SettingError, nearest
from mmdiff.eval.metrics import mmmu
from mmdiff.eval.tasks import base
from mmdiff.eval.tasks.base import TASKS, BadQuestion, Judged, Mark, Question, Table, Task

NAMED = re.compile(r"<image ([1-7])>")  # a row has seven columns of pictures
VARIANTS = ("official", "lmms_eval", "interleaved")


@TASKS.register("mmmu")
class MMMU(Task):
    name = "mmmu"
    ways = ("generate", "letters", "texts")
    splits = ("validation", "val", "test", "dev")

    def __init__(self, option: str = "", metric: str | None = None) -> None:
        super().__init__("", metric)
        self.variant = option or "official"
        if self.variant not in VARIANTS:
            hint = nearest(option, VARIANTS)
            raise SettingError(f"mmmu:{option}: choose one of {', '.join(VARIANTS)}.{hint}")
        self.form = "official" if self.variant == "official" else "lmms_eval"
        self.protocol = f"mmmu_{self.form}"
        self.head = "chat" if self.variant == "interleaved" else "answer"

    def question(self, row: dict[str, Any]) -> Question:
        identifier = base.identifier(row, "id")
        options = options_of(row)
        asked = prompt(base.text(row, "question"), options, self.form)
        numbers = shown(asked)
        said: Any = asked if self.head == "answer" else [message(asked)]
        return Question(
            identifier,
            said,
            answer_of(row, options),
            tuple(base.image(row, f"image_{number}") for number in numbers),
            options or (),
            {"subject": mmmu.subject(identifier)},
        )

    def marks(self, questions: Sequence[Question], said: Sequence[str]) -> list[Mark]:
        return judged_letters(questions, said, self.form)

    def tables(self, judged: Sequence[Judged]) -> dict[str, Table]:
        marks: dict[str, list[float]] = {}
        for each in judged:
            marks.setdefault(each.question.groups["subject"], []).append(each.mark.score)
        rows = mmmu.table(marks)
        table = [
            {"name": name, "num": row["num"], "score": row["acc"]} for name, row in rows.items()
        ]
        return {"subject": table}


def options_of(row: dict[str, Any]) -> tuple[str, ...] | None:
    """The options; None for an open question, which is whatever is not multiple-choice."""
    if base.text(row, "question_type") != "multiple-choice":
        return None
    return base.options(row, "options")


def answer_of(row: dict[str, Any], options: Sequence[str] | None) -> str | list[str]:
    """The right letter, or the right answers of an open question."""
    if options is not None:
        return base.option_letter(row, "answer", options)
    if isinstance(row.get("answer"), list | tuple):
        return base.texts(row, "answer")
    answer = base.text(row, "answer")
    if answer.startswith("["):
        with suppress(BadQuestion):  # an interval, or the name of an ion, is no list
            return base.texts(row, "answer")
    if answer.strip() in ("", "?"):
        raise BadQuestion("bad_answer", f"answer {answer!r}: the row has no right answer")
    return answer


def prompt(question: str, options: Sequence[str] | None, form: str = "official") -> str:
    """The question as it is asked, of MMMU's own code or of lmms-eval."""
    if options is None:
        gap = "\n" if form == "official" else "\n\n"
        return f"{question}{gap}{base.SHORT}"
    sign = "({}) {}" if form == "official" else "{}. {}"
    return f"{question}\n{base.lettered(options, sign)}\n\n{base.LETTER}"


def shown(asked: str) -> list[int]:
    """Numbers of the pictures that the text names, in order; the first one where it names none.
    One row of the data names pictures beyond the seven columns, which stay text."""
    return list(dict.fromkeys(int(number) for number in NAMED.findall(asked))) or [1]


def message(asked: str) -> dict[str, Any]:
    """A user turn with every picture where it is first named; named again, its name stays."""
    parts: list[dict[str, Any]] = [] if NAMED.search(asked) else [{"type": "image"}]
    seen: set[str] = set()
    for place, piece in enumerate(NAMED.split(asked)):  # text, number, text, number, text
        if place % 2 and piece not in seen:
            seen.add(piece)
            parts.append({"type": "image"})
        elif place % 2:
            parts.append({"type": "text", "text": f"<image {piece}>"})
        elif piece:
            parts.append({"type": "text", "text": piece})
    return {"role": "user", "content": parts}


def judged_letters(
    questions: Sequence[Question], said: Sequence[str], form: str = "official"
) -> list[Mark]:
    """Marks of letters and open answers; where no letter is found the score takes MMMU's guess."""
    parsed = [
        mmmu.parse_choice(text, question.options, form)
        for question, text in zip(questions, said, strict=True)
        if question.options
    ]
    counts = [len(question.options) for question in questions if question.options]
    letters = iter(zip(parsed, mmmu.guesses(parsed, counts), strict=True))
    marks = []
    for question, text in zip(questions, said, strict=True):
        if question.options:
            letter, guess = next(letters)
            marks.append(
                Mark(float(guess == question.answer), float(letter == question.answer), letter)
            )
        else:
            found = mmmu.parse_open(text)
            shown_ = [str(value) for value in found if value != ""]
            right = mmmu.open_right(found, question.answer)
            marks.append(base.plain_mark(right, shown_ or None))
    return marks
