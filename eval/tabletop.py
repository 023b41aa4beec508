"""Accuracy on the tabletop world's fixed test sets: questions, captions, and paired comparisons."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmdiff.data.worlds.tabletop import (
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    caption_ok,
    render,
    training_example,
    vqa_ok,
)
from mmdiff.data.worlds.tabletop_sets import SetItem, load_set

if TYPE_CHECKING:
    from mmdiff.heads.run import Generation
    from mmdiff.model import MMDiffModel

Progress = Callable[[int], None] | None


@dataclass(frozen=True)
class Result:
    """One judged answer. `nfe` and `length` (tokens up to the first end-of-text) are the row's,
    `outside` as in `Generation`."""

    kind: str
    correct: bool
    nfe: int
    length: int
    seconds: float
    text: str
    wanted: str
    outside: float = 0.0


def answer_set(
    model: MMDiffModel,
    name: str,
    limit: int | None = None,
    blind: bool = False,
    progress: Progress = None,
    **decoding: Any,
) -> list[Result]:
    """Exact match on every question of a set; `blind` shows a plain grey picture instead."""
    from PIL import Image

    grey = Image.new("RGB", (128, 128), (128, 128, 128))
    results = []
    for chunk in _chunks(load_set(name)[:limit], 32):
        inputs, asked = [], []
        for item in chunk:
            picture = grey if blind else render(item.scene)
            for qa in item.qas:
                inputs.append(([picture], qa.question))
                asked.append(qa)
        made = model.run("answer", inputs, batch_size=len(inputs), **decoding)
        results += [
            judged(g, qa.kind, vqa_ok(g.text, qa.answer), qa.answer)
            for g, qa in zip(made, asked, strict=True)
        ]
        if progress:
            progress(len(chunk))
    return results


def caption_set(
    model: MMDiffModel, limit: int | None = None, progress: Progress = None, **decoding: Any
) -> list[Result]:
    """Captions judged whole: every stated object, colour and relation true, none missing."""
    results = []
    for chunk in _chunks(load_set("caption")[:limit], 32):
        pictures = [([render(item.scene)], None) for item in chunk]
        made = model.run("caption", pictures, batch_size=len(pictures), **decoding)
        for g, item in zip(made, chunk, strict=True):
            kind, correct = f"{len(item.scene.objects)} objects", caption_ok(g.text, item.scene)
            results.append(judged(g, kind, correct, item.caption))
        if progress:
            progress(len(chunk))
    return results


def judged(made: Generation, kind: str, correct: bool, wanted: str) -> Result:
    return Result(
        kind, correct, made.nfe, made.length, made.seconds, made.text, wanted, made.outside
    )


def accuracy(results: Sequence[Result]) -> float:
    return sum(r.correct for r in results) / max(1, len(results))


def by_kind(results: Sequence[Result]) -> dict[str, tuple[float, int]]:
    """Accuracy and number of questions per kind."""
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[result.kind].append(result)
    return {kind: (accuracy(group), len(group)) for kind, group in sorted(groups.items())}


def nfe_ratio(results: Sequence[Result]) -> float:
    """Mean backbone calls over mean answer length, both up to the first end-of-text."""
    return sum(r.nfe for r in results) / max(1, sum(r.length for r in results))


def paired_interval(a: Sequence[Result], b: Sequence[Result]) -> tuple[float, float, float]:
    """Mean accuracy change from a to b on the same rows, with its 95 % normal interval."""
    change = [int(y.correct) - int(x.correct) for x, y in zip(a, b, strict=True)]
    n = len(change)
    mean = sum(change) / n
    variance = sum((c - mean) ** 2 for c in change) / max(1, n - 1)
    half = 1.96 * (variance / n) ** 0.5
    return mean, mean - half, mean + half


def blind_guess(name: str, fitted: int = 20_000, seed: int = 1) -> float:
    """Best score without the picture: the commonest training answer per question template.

    A template is the question with its colours, shapes, sizes and textures left open.
    """
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    index = total = 0
    while total < fitted:
        for qa in training_example(index, seed, 4).qas:
            votes[template(qa.question)][qa.answer] += 1
            total += 1
        index += 1
    everything = sum(votes.values(), Counter())
    questions = [qa for item in load_set(name) for qa in item.qas]
    hits = sum(
        vqa_ok((votes.get(template(qa.question)) or everything).most_common(1)[0][0], qa.answer)
        for qa in questions
    )
    return hits / len(questions)


_OPEN = re.compile(
    r"\b(" + "|".join((*COLOURS, *SHAPES, *SIZES, *TEXTURES, "ball", "box")) + r")(e?s)?\b"
)


def template(question: str) -> str:
    return _OPEN.sub("*", question).rstrip("?. ")


def _chunks(items: Sequence[SetItem], size: int) -> Iterable[Sequence[SetItem]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
