"""Relaxed accuracy, ChartQA's score (arXiv:2203.10244 section 5.1, as lmms-eval has it:
`tasks/chartqa/utils.py`)."""

from __future__ import annotations

TOLERANCE = 0.05


def relaxed(prediction: str, target: str, tolerance: float = TOLERANCE) -> bool:
    """Whether a number lies within 5 % of the target; all else, a target of 0 too, must be equal
    but for letters' case. "10%" is the number 0.1."""
    wanted, got = _number(target), _number(prediction)
    if got is None or not wanted:
        return prediction.lower() == target.lower()
    return abs(got - wanted) / abs(wanted) <= tolerance


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
