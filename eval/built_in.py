"""The measured table of the built-in model: every figure of its model card comes from here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import mmdiff
from mmdiff.eval import speed
from mmdiff.eval.tabletop import (
    Result,
    accuracy,
    answer_set,
    blind_guess,
    by_kind,
    caption_set,
    nfe_ratio,
    paired_interval,
)

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel

PICTURE = Path(mmdiff.__file__).parent / "pictures" / "table.png"
ONE_BY_ONE = {"accept": "schedule"}


@dataclass(frozen=True)
class Figure:
    """One line of the table; `wanted` says what it should reach."""

    what: str
    value: str
    wanted: str = ""
    held: bool | None = None  # None: a figure without a bar


def measure(
    model: MMDiffModel, limit: int | None = None, progress: Callable[[int], None] | None = None
) -> Iterator[Figure]:
    """Accuracy first, then timings; `limit` scenes of each set for a quick look."""
    yield from questions(model, limit, progress)
    yield from captions(model, limit, progress)
    yield from timings(model)


def questions(
    model: MMDiffModel, limit: int | None, progress: Callable[[int], None] | None
) -> Iterator[Figure]:
    seen = answer_set(model, "vqa", limit, progress=progress)
    yield share("VQA exact match, unseen scenes", seen, 0.90)
    for kind, (score, count) in by_kind(seen).items():
        yield Figure(f"  {kind}", f"{score:.1%} of {count}")
    held_out = answer_set(model, "vqa_held_out", limit, progress=progress)
    yield share("VQA on never-seen colour x shape pairs", held_out, 0.70)
    for kind, (score, count) in by_kind(held_out).items():
        yield Figure(f"  {kind}", f"{score:.1%} of {count}")
    grey = answer_set(model, "vqa", limit, blind=True, progress=progress)
    score = accuracy(grey)
    what = "VQA, the same model shown a grey picture"
    yield Figure(what, f"{score:.1%}", "<= 55 %", score <= 0.55)
    guess = blind_guess("vqa")
    yield Figure("VQA, commonest answer per question", f"{guess:.1%}", "<= 55 %", guess <= 0.55)


def captions(
    model: MMDiffModel, limit: int | None, progress: Callable[[int], None] | None
) -> Iterator[Figure]:
    preset = caption_set(model, limit, progress=progress)
    yield share("captions wholly true, nothing missing", preset, 0.80)
    for kind, (score, count) in by_kind(preset).items():
        yield Figure(f"  {kind}", f"{score:.1%} of {count}")
    slow = caption_set(model, limit, progress=progress, **ONE_BY_ONE)
    value = f"{accuracy(slow):.1%}, {nfe_ratio(slow):.2f} NFE per answer token"
    yield Figure("captions, one token per step", value)
    ratio = nfe_ratio(preset)
    what = "threshold decoding: NFE per answer token"
    yield Figure(what, f"{ratio:.3f}", "<= 0.333", ratio <= 1 / 3)
    change, low, high = paired_interval(slow, preset)
    yield Figure(
        "  accuracy change, paired 95 % interval",
        f"{change * 100:+.2f} [{low * 100:+.2f}, {high * 100:+.2f}] points",
        "low end above -1",
        low > -0.01,
    )


def timings(model: MMDiffModel) -> Iterator[Figure]:
    import torch

    for threads in sorted({1, torch.get_num_threads()}):
        cache = speed.prefix_cache(model, threads)
        same = "identical" if cache["identical"] else "DIFFERENT"
        yield Figure(
            f"prefix cache, 256-token prompt, 64 new, {threads} thread{'s'[: threads - 1]}",
            f"{same} tokens, {cache['speedup']:.1f}x "
            f"({cache['seconds_none']:.2f} s -> {cache['seconds_prefix']:.2f} s)",
            "identical, >= 3x",
            cache["identical"] and cache["speedup"] >= 3,
        )
    start = speed.cold_start(PICTURE)
    yield Figure("mmdiff --help", f"{start['help']:.2f} s", "<= 0.5 s", start["help"] <= 0.5)
    yield Figure(
        "cold caption / bare import",
        f"{start['ratio']:.2f} ({start['caption']:.1f} s / {start['import']:.1f} s)",
        "<= 1.5",
        start["ratio"] <= 1.5,
    )
    many = speed.batching(model)
    yield Figure(
        "256 pictures in one call against one by one",
        f"{many['speedup']:.1f}x ({many['one_by_one']:.1f} s -> {many['one_call']:.1f} s)",
        ">= 5x, or the reason",
        many["speedup"] >= 5,
    )


def share(what: str, results: list[Result], bar: float) -> Figure:
    """An accuracy with its 95 % half width (normal approximation)."""
    score = accuracy(results)
    half = 1.96 * (score * (1 - score) / max(1, len(results))) ** 0.5
    value = f"{score:.1%} +- {half:.1%} of {len(results)}"
    return Figure(what, value, f">= {bar:.0%}", score >= bar)
