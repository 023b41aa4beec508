"""Timings of the built-in model: prefix cache, batching, cold start."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.data.worlds.tabletop import render
from mmdiff.data.worlds.tabletop_sets import load_set

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel

BARE_IMPORT = (
    "import mmdiff, torch, transformers.models.siglip.modeling_siglip, "
    "transformers.models.llama.modeling_llama"
)


def prefix_cache(
    model: MMDiffModel, threads: int, prompt: int = 256, new: int = 64, rounds: int = 3
) -> dict[str, Any]:
    """One token per step, batch 1, so many CPU threads: wall time without and with the prompt's
    keys and values kept."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    used = model.config.vocab_used
    ids = torch.randint(300, used, (1, prompt), generator=torch.Generator().manual_seed(0))
    runs: dict[str, list[float]] = {"none": [], "prefix": []}
    tokens: dict[str, Any] = {}
    for _ in range(rounds):
        for cache, times in runs.items():
            began = time.perf_counter()
            out = model.generate(
                ids, max_new_tokens=new, accept="schedule", stop="none", cache=cache
            )
            times.append(time.perf_counter() - began)
            tokens[cache] = out.sequences
    torch.set_num_threads(before)
    slow, fast = (statistics.median(runs[name]) for name in ("none", "prefix"))
    return {
        "identical": bool(torch.equal(tokens["none"], tokens["prefix"])),
        "seconds_none": slow,
        "seconds_prefix": fast,
        "speedup": slow / fast,
    }


def batching(model: MMDiffModel, pictures: int = 256) -> dict[str, float]:
    """Captions of many pictures in one call against one call each."""
    items = load_set("caption")
    images = [render(items[i % len(items)].scene) for i in range(pictures)]
    model.caption(images[:2])
    few = images[: max(1, pictures // 4)]
    one = _seconds(lambda: [model.caption(image) for image in few]) * pictures / len(few)
    many = _seconds(lambda: model.caption(images))
    return {"one_by_one": one, "one_call": many, "speedup": one / many}


def cold_start(picture: Path, rounds: int = 5) -> dict[str, float]:
    """Whole processes: `mmdiff --help`, a cold caption, and a bare import of the same libraries."""
    commands = {
        "help": [sys.executable, "-m", "mmdiff", "--help"],
        "caption": [sys.executable, "-m", "mmdiff", "caption", str(picture)],
        "import": [sys.executable, "-c", BARE_IMPORT],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            took = _seconds(partial(subprocess.run, command, check=True, capture_output=True))
            if number:  # the first round fills the file cache
                times[name].append(took)
    median = {name: statistics.median(values) for name, values in times.items()}
    return {**median, "ratio": median["caption"] / median["import"]}


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
