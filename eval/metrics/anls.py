"""Average normalised Levenshtein similarity, DocVQA's score (arXiv:1907.00490, as lmms-eval has it:
`api/metrics.py`)."""

from __future__ import annotations

from collections.abc import Sequence

THRESHOLD = 0.5


def anls(answers: Sequence[str], prediction: str, threshold: float = THRESHOLD) -> float:
    """1 - the smallest normalised distance to an answer, 0 below `threshold`.

    Letters' case and runs of blanks do not count; the distance is divided by the longer *raw* text.
    """
    return _above(1 - min(_distance_share(answer, prediction) for answer in answers), threshold)


def _above(similarity: float, threshold: float) -> float:
    return similarity if similarity >= threshold else 0.0


def _distance_share(answer: str, prediction: str) -> float:
    longest = max(len(answer.upper()), len(prediction.upper()))
    return levenshtein(_folded(answer), _folded(prediction)) / longest if longest else 0.0


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def levenshtein(a: str, b: str) -> int:
    """Fewest insertions, deletions and replacements that make one text of the other."""
    if len(a) < len(b):
        a, b = b, a
    row = list(range(len(b) + 1))
    for number, letter in enumerate(a, start=1):
        before, row = row, [number]
        for place, other in enumerate(b):
            row.append(
                min(before[place + 1] + 1, row[place] + 1, before[place] + (letter != other))
            )
    return row[-1]
