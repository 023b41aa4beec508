"""The figures of a run: scores with their errors, costs, tables, and what to beware of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import mmdiff
from mmdiff.eval.samples import Sample
from mmdiff.eval.tasks.base import Judged, Task

if TYPE_CHECKING:
    from mmdiff.decoding.settings import Decoding
    from mmdiff.eval.tasks.source import Bad

ROUNDS = 1000  # of the bootstrap
SEED = 0


@dataclass(frozen=True)
class Answered:
    """A judged question and its answer as kept on disk."""

    judged: Judged
    sample: Sample

    @property
    def verdict(self) -> dict[str, Any]:
        """What stands behind the answer in the file of answers."""
        question, mark = self.judged.question, self.judged.mark
        about = {"parsed": mark.parsed, "score": mark.score, "strict": mark.strict}
        return {"answer": question.answer, **about, "groups": question.groups}


def results_of(
    task: Task,
    answered: Sequence[Answered],
    settings: Decoding,
    model: dict[str, str],
    bad: Sequence[Bad],
    by: str = "generate",
) -> dict[str, Any]:
    """What `results.json` holds. Everything that a clock says stands under `time`."""
    judged = [each.judged for each in answered]
    samples = [each.sample for each in answered]
    score, error = score_of(task.parts(judged))
    strict, strict_error = score_of(task.parts(judged, strict=True))
    nfe, tokens = sum(s.nfe for s in samples), sum(s.length for s in samples)
    seconds = sum(s.seconds for s in samples)
    count = len(samples)
    notes = warnings(settings, samples) if by == "generate" else []
    if score is not None and strict is not None and score > strict:
        lucky = task.scale * (score - strict)
        notes.append(
            f"{lucky:.1f} of the score are lucky guesses for answers without a letter, as the "
            "protocol has it; strict_score leaves them out"
        )
    figures = task.figures(judged) if judged else {}
    return {
        "task": task.spec,
        "protocol": task.protocol,
        "score": score,
        "error": error,
        "scale": task.scale,
        "strict_score": strict,
        "strict_error": strict_error,
        "not_parsed": sum(each.mark.parsed is None for each in judged) / count if count else None,
        "questions": count,
        "figures": figures,
        "tables": task.tables(judged) if judged else {},
        "nfe": {"mean": nfe / count if count else None, "total": nfe},
        "tokens": {"mean": tokens / count if count else None, "total": tokens},
        "tokens_per_forward": tokens / nfe if nfe else None,
        "decoding": asdict(settings),
        "model": model,
        "data": {"bad_rows": len(bad), "kinds": dict(sorted(Counter(b.kind for b in bad).items()))},
        "warnings": task.notes() + notes,
        "version": mmdiff.__version__,
        "time": {
            "seconds": seconds,
            "seconds_per_question": seconds / count if count else None,
            "tokens_per_second": tokens / seconds if seconds else None,
        },
    }


def score_of(parts: Sequence[Sequence[float]]) -> tuple[float | None, float | None]:
    """The sum of the parts' means, and its standard error by the bootstrap; None for no answers."""
    filled = [np.asarray(part, dtype=np.float64) for part in parts if len(part)]
    if not filled:
        return None, None
    score = float(sum(part.mean() for part in filled))
    return score, bootstrap_error(filled)


def bootstrap_error(parts: Sequence[np.ndarray], rounds: int = ROUNDS, seed: int = SEED) -> float:
    """Standard deviation of the sum of means when each part is drawn anew from itself."""
    rng = np.random.default_rng(seed)
    totals = np.zeros(rounds)
    for part in parts:
        for number in range(rounds):
            totals[number] += part[rng.integers(0, len(part), len(part))].mean()
    return float(totals.std(ddof=1))


def warnings(settings: Decoding, samples: Sequence[Sample]) -> list[str]:
    """Where the figures do not say what they seem to: settings that make a schedule idle."""
    found = []
    steps, cells = settings.steps or settings.max_new_tokens, settings.max_new_tokens
    if settings.accept == "schedule" and steps >= cells:
        found.append(
            f"{steps} steps for {cells} cells: one cell per step, so that every schedule gives the "
            "same answers and none saves a call; set steps or accept"
        )
    short = sum(sample.length <= 2 for sample in samples)
    if samples and 2 * short > len(samples):
        share = short / len(samples)
        found.append(
            f"{share:.0%} of the answers are one token: they do not test how tokens are decoded "
            "together"
        )
    full = sum(sample.length >= cells for sample in samples) if cells > 2 else 0
    if samples and 10 * full > len(samples):
        found.append(
            f"{full / len(samples):.0%} of the answers fill all {cells} cells and may be cut off; "
            "raise max_new_tokens"
        )
    return found
