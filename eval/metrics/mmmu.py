"""MMMU (arXiv:2311.16502): reading answers and scoring them.

`official` is MMMU's own `mmmu/utils/eval_utils.py`, `lmms_eval` the parser of lmms-eval 0.7.2
(`tasks/_task_utils/mmmu_mcq_utils.py`). Where both guess a letter at random, nothing is parsed
here: `guesses` makes the official picks, and the strict score counts them as wrong.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence

from mmdiff.eval.metrics.letter import LETTERS

Parsed = str | float

DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
# How a letter must stand in the answer; the first form that finds any decides.
FORMS = {"official": ("({})", " {} "), "lmms_eval": ("({})", "{} ", "{}.")}
MANY_WORDS = 5  # only longer answers are searched for an option's text
TAILS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
TRIVIAL = frozenset(":,.!?;'")
GUESS_SEED = 42
NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def parse_choice(response: str, options: Sequence[str], protocol: str = "official") -> str | None:
    """The letter of the option that an answer names, the last one of several; None for none."""
    for sign in ",.!?;:'":
        response = response.strip(sign)
    text = f" {response} "
    letters = LETTERS[: len(options)]
    for form in FORMS[protocol]:
        found = [letter for letter in letters if form.format(letter) in text]
        if found:
            place = "({})" if form == "({})" else " {} "
            return max(found, key=lambda letter: text.rfind(place.format(letter)))
    if len(text.split()) <= MANY_WORDS:
        return None
    lower = text.lower()
    places = {
        letter: lower.rfind(option.lower())
        for letter, option in zip(letters, options, strict=True)
        if option.lower() in lower
    }
    return max(places, key=places.__getitem__) if places else None


def guesses(parsed: Sequence[str | None], choices: Sequence[int]) -> list[str]:
    """`parsed` with the official picks in place of None: Python's generator with seed 42, one draw
    for each such row in order; `choices` says how many options each row has."""
    rng = random.Random(GUESS_SEED)
    return [
        rng.choice(LETTERS[:count]) if letter is None else letter
        for letter, count in zip(parsed, choices, strict=True)
    ]


def parse_open(response: str) -> list[Parsed]:
    """The texts and numbers that an open answer may mean, each once, in order."""
    tails = key_parts(response)
    found = tails + [number for tail in tails for number in numbers(tail)]
    return list(dict.fromkeys(value for text in found for value in normalized(text)))


def key_parts(response: str) -> list[str]:
    """The shortest end of each line behind a word such as "is"; the whole answer where no line has
    one. The text is lower-cased first, so that no capital parts sentences any more."""
    text = response.strip().strip(".").lower()
    lines = text.split("\n")
    found = []
    for number, line in enumerate(lines, start=1):
        signs = (*TAILS, "=") if number == len(lines) else TAILS
        best = ""
        for tail in (line.split(sign)[-1].strip() for sign in signs if sign in line):
            if not best or len(tail) < len(best):
                best = tail
        if best and best not in TRIVIAL:
            found.append(best)
    return found or [text]


def numbers(text: str) -> list[str]:
    """Numbers with commas, then in scientific notation, then plain ones."""
    return [number for pattern in NUMBERS for number in pattern.findall(text)]


def normalized(text: str) -> list[Parsed]:
    """A number rounded to two decimals, or the text in lower case; one letter becomes two texts
    with a blank on either side."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]


def open_right(parsed: Iterable[Parsed], answer: str | Sequence[str]) -> bool:
    """Whether a parsed text holds a right answer's text, or a parsed number is one."""
    answers = [answer] if isinstance(answer, str) else answer
    wanted = [value for each in answers for value in normalized(each)]
    texts = [value for value in wanted if isinstance(value, str)]
    return any(
        any(text in value for text in texts) if isinstance(value, str) else value in wanted
        for value in parsed
    )


def subject(identifier: str) -> str:
    """The subject in an id such as validation_Art_Theory_3."""
    return "_".join(identifier.split("_")[1:-1])


def table(marks: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """The official table from the marks (0 or 1) of each subject: every domain, its subjects, and
    all of them, weighted by questions, rounded to three decimals."""
    rows: dict[str, dict[str, float]] = {}
    for domain, subjects in DOMAINS.items():
        present = [name for name in subjects if name in marks]
        rows[f"Overall-{domain}"] = _row([mark for name in present for mark in marks[name]])
        rows |= {name: _row(marks[name]) for name in present}
    rows["Overall"] = _row([mark for values in marks.values() for mark in values])
    return rows


def _row(marks: Sequence[float]) -> dict[str, float]:
    return {"num": len(marks), "acc": round(sum(marks) / len(marks), 3) if marks else 0}
