"""ScienceQA: multiple choice with a hint; the answer must begin with the letter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdiff.eval.metrics.letter import LETTERS, letter
from mmdiff.eval.tasks import base
from mmdiff.eval.tasks.base import TASKS, Mark, Question, Task


@TASKS.register("scienceqa")
class ScienceQA(Task):
    name = "scienceqa"
    ways = ("generate", "letters", "texts")
    protocol = "scienceqa_letter"

    def question(self, row: dict[str, Any]) -> Question:
        options = base.options(row, "choices")
        answer = base.cell(row, "answer")
        if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
            answer = LETTERS[answer]
        answer = base.option_letter({"answer": answer}, "answer", options)
        hint = str(row.get("hint") or "")
        return Question(
            base.identifier(row, "id", "question_id"),
            prompt(base.text(row, "question"), options, hint),
            answer,
            (base.image(row, "image"),) if row.get("image") is not None else (),
            options,
            {name: str(row[name]) for name in ("subject", "grade") if row.get(name)},
        )

    def mark(self, question: Question, said: str) -> Mark:
        found = letter(said)
        return base.plain_mark(found == question.answer, found)


def prompt(question: str, options: Sequence[str], hint: str) -> str:
    """The question as lmms-eval asks it."""
    context = f"Context: {hint}\n" if hint else ""
    return f"{context}{question}\n{base.lettered(options)}\n{base.LETTER}"
