"""MME: two yes/no questions for each picture, summed over 10 perception and 4 cognition groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from mmdiff.eval.metrics.yes_no import COGNITION, PERCEPTION, mme_label, mme_scores, mme_sum
from mmdiff.eval.tasks import base
from mmdiff.eval.tasks.base import TASKS, BadQuestion, Judged, Mark, Question, Table, Task

OWN_TAIL = " Please answer yes or no."


@TASKS.register("mme")
class MME(Task):
    """The score is the sum of both figures, of at most 2800."""

    name = "mme"
    ways = ("generate", "texts")
    protocol = "mme_sum"
    scale = 1.0

    def question(self, row: dict[str, Any]) -> Question:
        category = base.text(row, "category")
        if category not in (*PERCEPTION, *COGNITION):
            raise BadQuestion("column_type", f"category {category[:40]!r} is none of MME's")
        asked = base.text(row, "question").strip().replace(OWN_TAIL, "")
        picture = base.identifier(row, "question_id")
        return Question(
            f"{picture} {asked}",
            f"{asked}\n{base.SHORT}",
            base.yes_or_no(row, "answer"),
            (base.image(row, "image"),),
            ("yes", "no"),
            groups={"category": category},
            unit=f"{category}/{picture}",
        )

    def check(self, questions: Sequence[Question]) -> Iterator[tuple[int, BadQuestion]]:
        counts = Counter(question.unit for question in questions)
        for place, question in enumerate(questions):
            if counts[question.unit] != 2:
                text = f"the picture {question.unit} has {counts[question.unit]} questions, not two"
                yield place, BadQuestion("no_pair", text)

    def mark(self, question: Question, said: str) -> Mark:
        label = mme_label(said)
        return base.plain_mark(label == question.answer, None if label == "other" else label)

    def parts(self, judged: Sequence[Judged], strict: bool = False) -> list[list[float]]:
        return list(_scores(judged).values())

    def figures(self, judged: Sequence[Judged]) -> dict[str, float]:
        scores = _scores(judged)
        right = sum(each.mark.score for each in judged) / max(1, len(judged))
        sums = {"perception": mme_sum(scores, PERCEPTION), "cognition": mme_sum(scores, COGNITION)}
        return {**sums, "accuracy": right}

    def tables(self, judged: Sequence[Judged]) -> dict[str, Table]:
        scores = _scores(judged)
        return {
            "category": [
                {"name": name, "num": 2 * len(scores[name]), "score": mme_sum(scores, [name])}
                for name in (*PERCEPTION, *COGNITION)
                if name in scores
            ]
        }


def _scores(judged: Sequence[Judged]) -> dict[str, list[float]]:
    return mme_scores(
        (each.question.groups["category"], each.question.unit, each.mark.score == 1)
        for each in judged
    )
