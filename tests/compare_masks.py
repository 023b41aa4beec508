"""Complementary pairs against independent masks at equal time: `python -m tests.compare_masks`.

A small model from scratch on the tabletop world, three seeds each. Time is CPU seconds of the
process, loader included, validation not; both ways are validated on the same pairs of masks.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import mmdiff
from mmdiff.config import build
from mmdiff.training.batches import Batches
from mmdiff.training.build import new_model
from mmdiff.training.loop import Trainer
from mmdiff.training.objective import batch_loss
from mmdiff.training.recipe import NewModel, Recipe

WAYS = {"complementary pairs": True, "independent masks": False}
MODEL = NewModel(
    text_config={
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
    },
    vision_config={
        "source": "transformers",
        "model_type": "bit",
        "image_size": 144,
        "config": {
            "embedding_size": 24,
            "hidden_sizes": [48, 96, 192],
            "depths": [1, 1, 1],
            "num_groups": 8,
            "global_padding": "SAME",
        },
    },
    projector={"kind": "mlp2x_gelu", "norm": True, "places": 9},
)
RECIPE = {
    "data": "tabletop",
    "max_steps": 10**6,
    "batch_size": 8,
    "turns": 6,
    "lr": 2e-3,
    "warmup_steps": 50,
    "min_lr_ratio": 1.0,
    "ema": 0.99,
    "workers": 0,
    "validate_every": 10**6,
    "save_every": 10**6,
    "report": "none",
}
OBJECTIVE = {"denominator": "root", "anchors": 0.5, "padding": "one"}
CELLS = {True: 272, False: 208}  # of a row that holds a caption and six questions


def curve(pairs: bool, seed: int, seconds: float, points: int, folder: Path) -> dict[str, Any]:
    """Validation loss along a run of so many CPU seconds."""
    tokenizer = mmdiff.load("mmdiff/tiny").processor.tokenizer
    new_model(MODEL, tokenizer, seed).save_pretrained(folder / "start")
    over = {"model": str(folder / "start"), "output": str(folder / "run"), "seed": seed}
    objective = {**OBJECTIVE, "complementary": pairs}
    trainer = Trainer(
        build(Recipe, {**RECIPE, **over, "objective": objective, "row_cells": CELLS[pairs]}), "cpu"
    )
    asked = replace(trainer.recipe.objective, complementary=True, anchors=0.0, denominator="answer")
    held = replace(trainer.recipe, objective=asked, row_cells=CELLS[True], seed=0, batch_size=32)
    batches = Batches(trainer.source, trainer.processor, held, True, "validation")
    fixed = [batches[i] for i in range(2)]

    def validation() -> float:
        model = trainer.averaged().eval()
        with torch.no_grad():
            return sum(float(batch_loss(model, batch, asked)) for batch in fixed) / len(fixed)

    steps, used, times, losses = trainer.steps(), 0.0, [], []
    while used < seconds:
        began = time.process_time()
        next(steps)
        used += time.process_time() - began
        if used >= seconds * (len(times) + 1) / points:
            times.append(used)
            losses.append(validation())
    return {"seed": seed, "steps": trainer.step, "seconds": times, "validation": losses}


def plot(rows: list[dict[str, Any]], target: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for way, colour in zip(WAYS, ("#08519c", "#d94801"), strict=True):
        for number, row in enumerate(row for row in rows if row["way"] == way):
            label = way if number == 0 else None
            axes.plot(row["seconds"], row["validation"], color=colour, label=label)
    axes.set(xlabel="CPU seconds", ylabel="validation loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(target, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--points", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/compare-masks"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(given.seeds):
        for way, pairs in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                made = curve(pairs, seed, given.seconds, given.points, Path(folder))
            rows.append({"way": way, **made})
            last = made["validation"][-1]
            print(f"{way}, seed {seed}: {made['steps']} steps, {last:.4f}", flush=True)
            (given.output / "curves.json").write_text(json.dumps(rows, indent=1) + "\n")
    plot(rows, given.output / "masks.png")


if __name__ == "__main__":
    main()
