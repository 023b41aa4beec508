"""POPE: is there such a thing in the picture? The bare word counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdiff.eval.metrics.yes_no import bare, pope
from mmdiff.eval.tasks import base
from mmdiff.eval.tasks.base import TASKS, Judged, Mark, Question, Task


@TASKS.register("pope")
class POPE(Task):
    name = "pope"
    ways = ("generate", "texts")
    protocol = "pope_accuracy"

    def question(self, row: dict[str, Any]) -> Question:
        category = str(row.get("category") or "")
        identifier = base.identifier(row, "id", "question_id")
        return Question(
            # The three sets number their questions alike.
            f"{category}/{identifier}" if category and identifier else identifier,
            f"{base.text(row, 'question')}\n{base.SHORT}",
            base.yes_or_no(row, "answer"),
            (base.image(row, "image"),),
            ("yes", "no"),
            groups={"category": category} if category else {},
        )

    def mark(self, question: Question, said: str) -> Mark:
        word = bare(said)
        return base.plain_mark(word == question.answer, word if word in ("yes", "no") else None)

    def figures(self, judged: Sequence[Judged]) -> dict[str, float]:
        return pope([each.said for each in judged], [each.question.answer for each in judged])
