"""Equality of short answers."""

from __future__ import annotations


def exact(answer: str, prediction: str) -> bool:
    """Equal but for letters' case, blanks, and one full stop at the end."""
    return _folded(answer) == _folded(prediction)


def _folded(text: str) -> str:
    return " ".join(text.lower().split()).removesuffix(".").rstrip()
