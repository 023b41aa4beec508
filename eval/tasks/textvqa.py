"""TextVQA: questions about words in pictures, VQA accuracy with EvalAI's normalisation."""

from __future__ import annotations

from typing import Any

from mmdiff.eval.tasks import base
from mmdiff.eval.tasks.base import TASKS, Mark, Question, Task
from mmdiff.eval.tasks.vqav2 import people, vqa_mark


@TASKS.register("textvqa")
class TextVQA(Task):
    name = "textvqa"
    protocol = "vqa_textvqa"
    splits = ("validation", "val", "test")

    def question(self, row: dict[str, Any]) -> Question:
        return Question(
            base.identifier(row, "question_id", "id"),
            f"{base.text(row, 'question')}\n{base.SHORT}",
            people(row),
            (base.image(row, "image"),),
        )

    def mark(self, question: Question, said: str) -> Mark:
        return vqa_mark(question, said, "textvqa")
