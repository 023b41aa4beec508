"""The speed of training: `python -m tests.speed_training`.

What a complementary pair costs beside one plain sample, and what of the loop's time goes into the
model. CPU seconds of this process on one thread, so that other work on the machine counts little;
what is compared takes turns in one run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import mmdiff
from mmdiff.canvas import Canvas
from mmdiff.cli.train import read_recipe
from mmdiff.model import MMDiffModel
from mmdiff.processing import collate, packed_row, prompt_row
from mmdiff.training.batches import Batch, with_noise
from mmdiff.training.loop import Trainer
from mmdiff.training.objective import batch_loss, prepare
from mmdiff.training.recipe import Objective

ROWS, PROMPT, ANSWER, ROUNDS = 8, 256, 64, 5


def timed(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def medians(works: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """CPU seconds of each, which take turns; a first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            took = timed(work)
            if number:
                times[name].append(took)
    return {name: statistics.median(values) for name, values in times.items()}


def canvas_of(model: MMDiffModel, copies: int, shared: bool, picture: bool) -> Canvas:
    """ROWS samples; their pairs share the prompt's cells, or repeat them in rows of their own."""
    assert model.processor is not None
    image_id = model.processor.image_token_id
    front = [image_id] * model.image_tokens if picture else []
    size = (PROMPT - len(front) + ANSWER,)
    words = torch.randint(100, model.config.vocab_used or model.rows, size).tolist()
    prompt, answer = words[:-ANSWER], words[-ANSWER:]
    rows = []
    for number in range(ROWS):
        images = [number] if picture else []
        if shared:
            rows.append(packed_row(front, [(prompt, answer)], copies, images))
            continue
        for copy in range(1, copies + 1):
            row = prompt_row([*front, *prompt], answer, [False] * ANSWER, images)
            row.writable[PROMPT:] = [True] * ANSWER
            row.copy[PROMPT:] = [copy] * ANSWER
            rows.append(row)
    pixels = None
    if picture:
        assert model.vision is not None
        pixels = torch.randn(ROWS, 3, model.vision.image_size, model.vision.image_size)
    return collate(rows, model.processor.end_id, pixels, image_id)


def pair(model: MMDiffModel, picture: bool) -> None:
    """Forward and backward of a plain sample, of a pair, and of a pair that shares nothing."""

    def step(copies: int, shared: bool) -> Callable[[], None]:
        objective = Objective(complementary=copies == 2)
        canvas = canvas_of(model, copies, shared, picture)
        if not shared and picture:  # so that the second copy's picture is encoded, too
            features = canvas.features
            assert features is not None
            features.pixel_values = features.pixel_values.repeat_interleave(copies, 0)
            features.source = torch.arange(len(features.source))
        batch = with_noise(canvas, torch.arange(ROWS).repeat_interleave(len(canvas.ids) // ROWS), 0)

        def work() -> None:
            batch_loss(model, batch, objective).backward()
            model.zero_grad(set_to_none=True)

        return work

    took = medians(
        {"plain": step(1, True), "pair": step(2, True), "apart": step(2, False)},
    )
    ratio, apart = (took[name] / took["plain"] for name in ("pair", "apart"))
    what = f"{PROMPT} prompt cells{', a picture among them' if picture else ''}, {ANSWER} answer"
    print(f"{what}: plain {took['plain']:.2f} s, pair {ratio:.2f}x, sharing nothing {apart:.2f}x")


def loop(name: str, over: dict[str, Any], steps: int = 8) -> None:
    """A step of the loop, its loader in this process, against the model alone."""
    with tempfile.TemporaryDirectory() as folder:
        never = {"validate_every": 10**6, "save_every": 10**6, "max_steps": 10**6, "workers": 0}
        over = {**over, **never, "compile": False, "output": str(Path(folder) / "run")}
        trainer = Trainer(read_recipe(name, over), "cpu")
        shares = trainer._shares()
        parts: list[Batch] = []

        def bare(update: bool = False) -> None:
            trainer.accelerator.backward(trainer.loss(*ready))
            if update:
                trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0)
                for optimizer in trainer.optimizers:
                    optimizer.step()
                if trainer.average is not None:
                    trainer.average.update_parameters(trainer.model)
            trainer.model.zero_grad(set_to_none=True)

        times: dict[str, list[float]] = {"loader": [], "step": [], "update": [], "bare": []}
        for number in range(steps + 1):
            loader = timed(lambda: parts.__setitem__(slice(None), next(shares)))
            step = timed(lambda: trainer._step(parts))
            task = prepare(trainer.model, parts[0], trainer.recipe.objective)
            ready = task, task.totals
            took = {"loader": loader, "step": step}
            took |= {"update": timed(lambda: bare(True)), "bare": timed(bare)}
            if number:
                for key, value in took.items():
                    times[key].append(value)
        tokens = int(parts[0].canvas.valid.sum())
    loader, step, update, alone = (statistics.median(times[k]) for k in times)
    print(f"{name}: {tokens / (loader + step):.0f} tokens/s, model alone {tokens / alone:.0f}")
    print(f"  forward and backward are {alone / (loader + step):.1%} of a step's time")
    print(f"  with the update {update / (loader + step):.1%}, with the loader in a worker")
    print(f"  {alone / step:.1%} and {update / step:.1%}; loader {loader / step:.1%} of a step")


def folder_of_pictures(folder: Path, rows: int = 64) -> str:
    """A LLaVA folder of the generated world's pictures, each with a caption."""
    import json

    from mmdiff.data.tabletop_source import Tabletop

    (folder / "images").mkdir()
    listed = []
    for number in range(rows):
        sample = Tabletop().sample(number, 0, 0, "train")
        sample.images[0].save(folder / "images" / f"{number}.png")
        said = [("human", f"<image>\n{sample.turns[0].request}"), ("gpt", sample.turns[0].answer)]
        turns = [{"from": role, "value": text} for role, text in said]
        listed.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (folder / "train.json").write_text(json.dumps(listed))
    return str(folder)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = mmdiff.load().float().train()
    for picture in (False, True):
        pair(model, picture)
    loop("tiny_captions", {"model": "mmdiff/tiny"})
    with tempfile.TemporaryDirectory() as made:
        loop("llava_finetune", {"data": folder_of_pictures(Path(made))})


if __name__ == "__main__":
    main()
