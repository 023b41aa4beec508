"""Yes/no questions: POPE (arXiv:2305.10355) and MME (arXiv:2306.13394), as lmms-eval has them
(`tasks/pope/utils.py`, `tasks/mme/utils.py`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark",
    "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def bare(text: str) -> str:
    return text.lower().strip()


def pope(predictions: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Accuracy, precision, recall, F1 with "yes" as the positive answer, all as published, and the
    shares of yes.

    Only the bare word counts: "Yes." is neither yes nor no. The published recall leaves such
    answers out; `recall_of_all` counts them as missed. `yes_ratio` is that of the predictions,
    `lmms_eval_yes_ratio` that of the right answers, which is what lmms-eval prints.
    """
    pairs = [(bare(said), bare(wanted)) for said, wanted in zip(predictions, answers, strict=True)]
    hits = sum(pair == ("yes", "yes") for pair in pairs)
    false_yes = sum(pair == ("yes", "no") for pair in pairs)
    false_no = sum(pair == ("no", "yes") for pair in pairs)
    positive = sum(wanted == "yes" for _, wanted in pairs)
    precision = _share(hits, hits + false_yes)
    recall = _share(hits, hits + false_no)
    return {
        "accuracy": _share(sum(said == wanted for said, wanted in pairs), len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "recall_of_all": _share(hits, positive),
        "yes_ratio": _share(hits + false_yes, len(pairs)),
        "lmms_eval_yes_ratio": _share(positive, len(pairs)),
    }


def mme_label(text: str) -> str:
    """yes, no, or other: the first four letters decide."""
    said = bare(text).replace(".", "")
    if len(said) == 1:
        return {"y": "yes", "n": "no"}.get(said, "other")
    return next((word for word in ("yes", "no") if word in said[:4]), "other")


def mme_scores(rows: Iterable[tuple[str, str, bool]]) -> dict[str, list[float]]:
    """The pictures' scores per category, from (category, picture, right) of each question.

    A picture has two questions and scores 100 for each share of right answers (accuracy) and 100
    more where both are right (accuracy+). A category's score is the mean over its pictures.
    """
    pictures: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for category, picture, right in rows:
        pictures[category, picture].append(right)
    scores: dict[str, list[float]] = defaultdict(list)
    for (category, _), marks in pictures.items():
        scores[category].append(100 * sum(marks) / len(marks) + 100 * all(marks))
    return dict(scores)


def mme_sum(scores: dict[str, list[float]], categories: Iterable[str]) -> float:
    """The sum over `categories` of their means; those without questions are left out."""
    means = [sum(scores[name]) / len(scores[name]) for name in categories if name in scores]
    return sum(means, 0.0)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
