"""The loss curve of a run, drawn from its log."""

from __future__ import annotations

import json
from pathlib import Path

from mmdiff.errors import require

SMOOTH = 50  # steps of the running mean


def draw(log: Path, target: Path) -> None:
    """Training loss (faint, and its running mean) and validation loss over steps, as a PNG.

    Raises MissingExtraError without matplotlib.
    """
    require("matplotlib", "plot", "a loss curve")
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [row["step"] for row in rows]
    losses = [row["loss"] for row in rows]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="#9ecae1", linewidth=0.5)
    axes.plot(steps, running_mean(losses), color="#08519c", label=f"training, mean of {SMOOTH}")
    checked = [(row["step"], row["validation"]) for row in rows if "validation" in row]
    if checked:
        axes.plot(*zip(*checked, strict=True), "o-", color="#d94801", label="validation, averaged")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(target, dpi=120)


def running_mean(values: list[float]) -> list[float]:
    """The mean of up to SMOOTH values behind each."""
    means = []
    total = 0.0
    for i, value in enumerate(values):
        total += value - (values[i - SMOOTH] if i >= SMOOTH else 0.0)
        means.append(total / min(i + 1, SMOOTH))
    return means
