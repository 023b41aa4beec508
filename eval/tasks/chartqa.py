"""ChartQA: questions about charts, relaxed accuracy."""

from __future__ import annotations

from typing import Any

from mmdiff.eval.metrics.relaxed import relaxed
from mmdiff.eval.tasks import base
from mmdiff.eval.tasks.base import TASKS, Mark, Question, Task

TAIL = "\nAnswer the question with a single word."


@TASKS.register("chartqa")
class ChartQA(Task):
    name = "chartqa"
    protocol = "chartqa_relaxed"

    def question(self, row: dict[str, Any]) -> Question:
        kind = str(row.get("type") or row.get("human_or_machine") or "")
        return Question(
            base.identifier(row, "id", "question_id"),
            base.text(row, "question") + TAIL,
            base.text(row, "answer"),
            (base.image(row, "image"),),
            groups={"set": kind} if kind else {},
        )

    def mark(self, question: Question, said: str) -> Mark:
        return base.plain_mark(relaxed(said, question.answer), said.strip() or None)
