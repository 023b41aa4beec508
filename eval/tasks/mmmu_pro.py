"""MMMU-Pro (arXiv:2409.02813): ten options, and questions that stand in the picture.

The score is the mean of both sets where both are read. An "Answer: X" at the end of an answer comes
before MMMU's rules for letters, as in the benchmark's own script.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdiff.eval.metrics import mmmu
from mmdiff.eval.metrics.letter import LETTERS
from mmdiff.eval.tasks import base
from mmdiff.eval.tasks.base import TASKS, Judged, Mark, Question, Task
from mmdiff.eval.tasks.mmmu import judged_letters, shown

TAIL = "Answer with the option letter from the given choices directly."


@TASKS.register("mmmu_pro")
class MMMUPro(Task):
    name = "mmmu_pro"
    ways = ("generate", "letters", "texts")
    protocol = "mmmu_pro"
    left_out = "(4 options)"  # the folder of the easier set

    def question(self, row: dict[str, Any]) -> Question:
        options = base.options(row, "options")
        answer = base.option_letter(row, "answer", options)
        subject = mmmu.subject(base.identifier(row, "id"))
        if row.get("question") is None:
            asked, kind, names = TAIL, "vision", ["image"]
        else:
            asked = f"{base.text(row, 'question')}\n{base.lettered(options)}\n{TAIL}"
            kind, names = "standard", [f"image_{number}" for number in shown(asked)]
        images = tuple(base.image(row, name) for name in names)
        groups = {"set": kind, "subject": row.get("subject") or subject}
        identifier = f"{kind}/{base.identifier(row, 'id')}"
        return Question(identifier, asked, answer, images, options, groups)

    def marks(self, questions: Sequence[Question], said: Sequence[str]) -> list[Mark]:
        texts = [
            stated(text, len(question.options)) or text
            for question, text in zip(questions, said, strict=True)
        ]
        return judged_letters(questions, texts)

    def parts(self, judged: Sequence[Judged], strict: bool = False) -> list[list[float]]:
        sets: dict[str, list[float]] = {}
        for each in judged:
            score = each.mark.strict if strict else each.mark.score
            sets.setdefault(each.question.groups["set"], []).append(score)
        return [[score / len(sets) for score in scores] for scores in sets.values()]


def stated(said: str, options: int) -> str | None:
    """The one letter behind the last "Answer:"."""
    _, sign, tail = said.rpartition("Answer:")
    found = [letter for letter in LETTERS[:options] if letter in tail] if sign else []
    return found[0] if len(found) == 1 else None
