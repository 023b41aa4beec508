"""The letter of an option, ScienceQA's score (as lmms-eval has it: `tasks/scienceqa/utils.py`)."""

from __future__ import annotations

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def letter(text: str) -> str | None:
    """The capital that an answer is or begins with ("B", "B. cat"); None for all others."""
    if len(text) == 1 or text[1:2] == ".":
        return text[0] if text[0].isupper() else None
    return None
