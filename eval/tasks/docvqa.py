"""DocVQA: questions about documents, ANLS."""

from __future__ import annotations

from typing import Any

from mmdiff.eval.metrics.anls import anls
from mmdiff.eval.tasks import base
from mmdiff.eval.tasks.base import TASKS, BadQuestion, Mark, Question, Task
from mmdiff.eval.tasks.chartqa import TAIL


@TASKS.register("docvqa")
class DocVQA(Task):
    name = "docvqa"
    protocol = "docvqa_anls"
    cells = 32
    splits = ("validation", "val", "test")

    def question(self, row: dict[str, Any]) -> Question:
        answers = base.texts(row, "answers")
        if not answers:
            raise BadQuestion("bad_answer", "answers is empty")
        return Question(
            base.identifier(row, "questionId", "question_id", "id"),
            base.text(row, "question") + TAIL,
            answers,
            (base.image(row, "image"),),
        )

    def mark(self, question: Question, said: str) -> Mark:
        return base.plain_mark(anls(question.answer, said), said.strip() or None)
