"""VQAv2: short answers, ten people's opinions each. `vqav2:lmms_eval` always normalises texts, as
lmms-eval does; the official evaluator leaves them where all ten agree."""

from __future__ import annotations

from typing import Any

from mmdiff.errors import SettingError
from mmdiff.eval.metrics import vqa
from mmdiff.eval.tasks import base
from mmdiff.eval.tasks.base import TASKS, BadQuestion, Mark, Question, Task

TYPES = ("answer_type", "question_type")  # the evaluator's own tables


@TASKS.register("vqav2")
class VQAv2(Task):
    name = "vqav2"
    splits = ("validation", "val", "test")

    def __init__(self, option: str = "", metric: str | None = None) -> None:
        super().__init__("", metric)
        self.form = option or "official"
        if self.form not in ("official", "lmms_eval"):
            raise SettingError(f"vqav2:{option}: choose official or lmms_eval")
        self.protocol = f"vqa_{self.form}"

    def question(self, row: dict[str, Any]) -> Question:
        return Question(
            base.identifier(row, "question_id", "id"),
            f"{base.text(row, 'question')}\n{base.SHORT}",
            people(row),
            (base.image(row, "image"),),
            groups={name: str(row[name])[:80] for name in TYPES if row.get(name)},
        )

    def mark(self, question: Question, said: str) -> Mark:
        return vqa_mark(question, said, self.form)


def vqa_mark(question: Question, said: str, form: str) -> Mark:
    """VQA accuracy; an answer of no words counts as not parsed."""
    return base.plain_mark(vqa.accuracy(question.answer, said, form), said.strip() or None)


def people(row: dict[str, Any]) -> list[str]:
    """The people's answers: texts, objects with one, or an object of lists. Raises BadQuestion."""
    given = base.cell(row, "answers")
    if isinstance(given, dict):
        found = base.texts(given, "answer")
    elif isinstance(given, list | tuple) and all(isinstance(each, dict) for each in given):
        found = [base.text(each, "answer") for each in given]
    else:
        found = base.texts(row, "answers")
    if len(found) < 2:
        raise BadQuestion("bad_answer", f"answers has {len(found)} entries; VQA accuracy needs two")
    return found
