"""VQA accuracy in three protocols.

`official`: GT-Vision-Lab/VQA `vqaEval.py`, which leaves all texts as they are where the people's
answers agree. `lmms_eval`: the same, always normalised. `textvqa`: lmms-eval's EvalAI processor
(`tasks/_task_utils/vqa_eval_metric.py`), which also takes out commas first and parts off 's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

PROTOCOLS = ("official", "lmms_eval", "textvqa")
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
ARTICLES = ("a", "an", "the")
_STOP = re.compile(r"\.(?!\d)")
_COMMA = re.compile(r"\d,\d")
_COMMAS = re.compile(r"\d,+\d")
STOPS_REMOVED = 32  # the published code passes a flag where the number of replacements belongs


@cache
def contractions() -> dict[str, str]:
    """Words without their apostrophe, and with it."""
    return json.loads(Path(__file__).with_name("contractions.json").read_text(encoding="utf-8"))


def accuracy(answers: Sequence[str], prediction: str, protocol: str = "official") -> float:
    """The mean over the people of min(1, others who said the same / 3)."""
    if protocol == "textvqa":
        said, people = evalai(prediction), [evalai(answer) for answer in answers]
    else:
        said, people = _trimmed(prediction), list(answers)
        if protocol == "lmms_eval" or len(set(answers)) > 1:
            said, people = normal(said), [normal(answer) for answer in answers]
    same = [person == said for person in people]
    marks = [min(1.0, (sum(same) - own) / 3) for own in same]
    return sum(marks) / len(marks)


def normal(text: str) -> str:
    """Punctuation, number words, articles and contractions as the official evaluator has them."""
    return words(without_punctuation(text))


def evalai(text: str) -> str:
    """As pythia's EvalAI answer processor."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return words(without_punctuation(_trimmed(text.strip()), _COMMAS))


def without_punctuation(text: str, comma: re.Pattern[str] = _COMMA) -> str:
    """Signs beside a blank go, others become blanks; where a comma parts two digits all go."""
    in_number = comma.search(text) is not None
    made = text
    for sign in PUNCTUATION:
        alone = in_number or f"{sign} " in text or f" {sign}" in text
        made = made.replace(sign, "" if alone else " ")
    return _STOP.sub("", made, count=STOPS_REMOVED)


def words(text: str) -> str:
    """Lower case, digits for number words, no articles, apostrophes put back."""
    found = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(contractions().get(word, word) for word in found if word not in ARTICLES)


def _trimmed(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
