"""The training loop: one process or several, resumable at every checkpoint.

A step takes `batch_size` samples, whatever the number of processes and of parts (`accumulate`) that
share them: each part's loss is divided by what the whole batch counts.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mmdiff import adapters
from mmdiff.backbone import see_in_parts
from mmdiff.config import to_dict
from mmdiff.data.recorded import Divided
from mmdiff.errors import SettingError, TrainingError
from mmdiff.training import checkpoint
from mmdiff.training.batches import Batch, Batches, batches
from mmdiff.training.build import build, settle
from mmdiff.training.objective import Task, prepare, task_loss
from mmdiff.training.optimizer import freeze, make_optimizers, set_rate
from mmdiff.training.report import available, tracker
from mmdiff.training.shards import put_together, shard, whole
from mmdiff.training.sources import open_source

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mmdiff.model import MMDiffModel
    from mmdiff.training.recipe import Objective, Recipe

VALIDATION_BATCHES = 4


class Loss(torch.nn.Module):
    """A model and its objective as one module: what is wrapped for several processes."""

    def __init__(self, model: MMDiffModel, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, task: Task, totals: torch.Tensor) -> torch.Tensor:
        return task_loss(self.model, task, totals, self.objective)


def accelerator_for(recipe: Recipe, device: str | None) -> Accelerator:
    """Processes and devices as `accelerate launch` set them up, else this process alone.

    Raises SettingError where the processes cannot share a step's samples evenly.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise SettingError(
            "accelerate's FSDP has none on CPU and no whole checkpoints; launch without --use_fsdp "
            "and add shard=true"
        )
    AcceleratorState._reset_state()  # of an earlier run in this process, with other settings
    unused = DistributedDataParallelKwargs(find_unused_parameters=recipe.anchor_steps > 0)
    made = Accelerator(
        mixed_precision={"bfloat16": "bf16", "float16": "fp16"}.get(recipe.precision, "no"),
        cpu=device == "cpu",
        kwargs_handlers=[unused],
    )
    if recipe.batch_size % (made.num_processes * recipe.accumulate):
        raise SettingError(
            f"batch_size={recipe.batch_size} is no multiple of {made.num_processes} processes "
            f"x accumulate={recipe.accumulate}"
        )
    return made


class Trainer:
    """A run in its output folder: model, average, optimisers and the step reached."""

    def __init__(self, recipe: Recipe, device: str | None = None) -> None:
        self.folder = Path(recipe.output)
        note = available(recipe.report)
        self.accelerator = accelerator_for(recipe, device)
        self.device = self.accelerator.device
        self.model: MMDiffModel = build(recipe).to(self.device)
        if self.model.processor is None:
            raise TrainingError(f"{recipe.model} holds no processor files, which training needs")
        recipe = self.recipe = settle(recipe, self.model)
        layout = self.model.config.attention_layout
        if recipe.objective.block and layout not in ("block", "causal_block"):
            raise SettingError(
                f"objective.block needs a model with attention_layout: block; this one has {layout}"
            )
        self.processor = self.model.processor
        limit = getattr(self.model.backbone.config, "max_position_embeddings", None)
        self.source = open_source(recipe, processor=self.processor, limit=limit)
        self.files, self.notes = [], [note] if note else []
        if isinstance(self.source, Divided):
            self.files = [list(each) for each in self.source.files]
            self.notes += self.source.left_out
        freeze(self.model, recipe)
        if recipe.lora:
            torch.manual_seed(recipe.seed)  # adapters begin at random
            adapters.inject(self.model, recipe.lora)
        self.average = None
        if recipe.ema:
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
        self._speed()
        self.loss: torch.nn.Module = Loss(self.model, recipe.objective)
        if recipe.shard:
            shard(self.loss, self.model, self.accelerator)
            self.optimizers = make_optimizers(self.model, recipe)
        else:
            made = make_optimizers(self.model, recipe)
            self.loss, *self.optimizers = self.accelerator.prepare(self.loss, *made)
        self.step = 0
        self.seconds = 0.0
        self._mark = 0.0  # when the time of the step to come began
        self._stop = False
        self.tracker: Any = None
        self._resume_or_start()

    def _speed(self) -> None:
        """Settings that change how fast a step is and how much memory it takes, nothing else."""
        backbone = self.model.backbone
        if self.recipe.row_parts > 1:
            see_in_parts(backbone)
        else:
            backbone.set_attn_implementation(self.recipe.attention)
        if self.recipe.gradient_checkpointing:
            backbone.gradient_checkpointing_enable()
        if self.recipe.compile:
            backbone.compile()

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        named: dict[str, torch.nn.Module] = {"model": self.model}
        if self.average is not None:
            named["average"] = self.average
        return named

    def _resume_or_start(self) -> None:
        found = checkpoint.complete(self.folder / "checkpoints")
        if found and not self.recipe.resume:
            raise TrainingError(
                f"{self.folder} holds a run at {found[-1].name}; "
                "add resume=true to go on or choose another output="
            )
        if self.recipe.resume and not found:
            raise TrainingError(
                f"{self.folder} holds no checkpoint to resume from; leave resume=true out to start"
            )
        if found:
            state = checkpoint.read_state(found[-1])
            self._compare(state.get("data"), found[-1].name)
            checkpoint.restore(found[-1], self.modules, self.optimizers)
            self.step, self.seconds = state["step"], state["seconds"]
        self.accelerator.wait_for_everyone()  # nobody writes before all have looked
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            written = json.dumps(to_dict(self.recipe), indent=2) + "\n"
            (self.folder / "recipe.json").write_text(written)
            _keep_lines_to(self.folder / "log.jsonl", self.step)
            self.tracker = tracker(self.recipe, self.step)

    def _compare(self, before: list[list[str]] | None, name: str) -> None:
        """Raise TrainingError where the data files are others than the checkpoint `name` says."""
        if before in (None, self.files) or self.recipe.changed_data == "accept":
            return
        known = {tuple(each) for each in before}
        unlike = [file for file, digest in self.files if (file, digest) not in known]
        what = unlike[0] if unlike else f"the list of data files ({len(before)} before)"
        raise TrainingError(
            f"{self.folder}: {what} has changed since {name}, and samples would no longer be those "
            "of the run; put it back, or add changed_data=accept to go on with it"
        )

    def run(self, report: Callable[[dict[str, Any]], None] | None = None) -> Path:
        """Train to max_steps, then save the model; `report` hears every step's figures.

        SIGTERM ends the run behind the step it is in, with a checkpoint. Raises TrainingError, with
        the samples of the step, where the loss or its gradient is not finite.
        """
        try:
            with self._stopped_by(signal.SIGTERM):
                for row in self.steps():
                    if report:
                        report(row)
        finally:
            if self.tracker is not None:
                self.tracker.finish()
        return self.export()

    def steps(self) -> Iterator[dict[str, Any]]:
        """Take step by step; each yields its figures."""
        self._mark = time.perf_counter()
        for parts in self._shares():
            yield self._step(parts)
            if self._stop:
                break
            self._mark = time.perf_counter()

    def _shares(self) -> Iterator[list[Batch]]:
        """This process's part of each step's batch, in `accumulate` parts."""
        layout, number = self.model.config.attention_layout, self.accelerator.process_index
        count = self.accelerator.num_processes
        share = number, count
        stream = batches(self.source, self.recipe, self.processor, layout, self.step, share)
        while parts := list(islice(stream, self.recipe.accumulate)):
            yield parts

    def _step(self, parts: list[Batch]) -> dict[str, Any]:
        loss, norm, tokens = self._update(parts)
        took = time.perf_counter() - self._mark
        self.seconds += took
        row = {
            "step": self.step,
            "loss": loss,
            "norm": norm,
            "lr": self.recipe.lr * self.recipe.rate(self.step - 1),
            "tokens": tokens,
            "seconds": self.seconds,
        }
        last = self.step == self.recipe.max_steps or self._stop
        if last or self.step % self.recipe.validate_every == 0:
            row["validation"] = self.validate()
        self._log(row)
        if last or self.step % self.recipe.save_every == 0:
            self._save()
        return row

    def _update(self, parts: list[Batch]) -> tuple[float, float, int]:
        """Loss, gradient norm and tokens (cells that are no padding) of a step of all processes."""
        accelerator, recipe = self.accelerator, self.recipe
        torch.manual_seed(recipe.seed + self.step)  # of dropout: a step's draws are its own
        self.model.train()
        set_rate(self.optimizers, recipe, self.step)
        tasks = [prepare(self.model, part, recipe.objective) for part in parts]
        counts = torch.stack([task.totals for task in tasks]).sum(0)
        tokens = sum(int(part.canvas.valid.sum()) for part in parts)
        counts = accelerator.reduce(torch.cat([counts, counts.new_tensor([tokens, self._stop])]))
        self._stop = bool(counts[-1])  # all processes end behind the same step
        shares = torch.zeros((), device=self.device)
        for number, task in enumerate(tasks):
            last = number == len(tasks) - 1
            # Processes exchange their gradients in the last part, and take the mean of them.
            with nullcontext() if last else accelerator.no_sync(self.loss):
                with accelerator.autocast():
                    share = self.loss(task, counts[:-2])
                accelerator.backward(share * accelerator.num_processes)
            shares += share.detach()
        loss = float(accelerator.reduce(shares))
        norm = float(whole(accelerator.clip_grad_norm_(self.model.parameters(), recipe.clip)))
        if not math.isfinite(loss) or not math.isfinite(norm):
            first, seed = self.step * recipe.batch_size, recipe.seed
            samples = range(first, first + recipe.batch_size)
            names = ", ".join(self.source.name(i, seed, "train") for i in samples)
            raise TrainingError(
                f"loss {loss} with gradient norm {norm} at step {self.step}; lower lr or check "
                f"these samples: {names}"
            )
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        return loss, norm, int(counts[-2])

    @torch.no_grad()
    def validate(self) -> float:
        """Loss on fixed validation samples and masks, by the averaged weights if there are."""
        model = self.averaged()
        model.eval()
        packed = model.config.attention_layout != "full"
        objective = replace(self.recipe.objective, anchors=0.0)
        dataset = Batches(self.source, self.processor, self.recipe, packed, "validation")
        loss = self.loss if self.recipe.shard else Loss(model, objective)
        losses = []
        with self.accelerator.autocast():
            for number in range(VALIDATION_BATCHES):
                task = prepare(model, dataset[number], objective)
                losses.append(float(loss(task, task.totals)))
        return sum(losses) / len(losses)

    def averaged(self) -> MMDiffModel:
        return self.model if self.average is None else cast("MMDiffModel", self.average.module)

    def _log(self, row: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with (self.folder / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        if self.tracker is not None:
            self.tracker.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])

    def _save(self) -> None:
        main = self.accelerator.is_main_process
        made = checkpoint.contents(self.modules, self.optimizers, main)
        if main:
            state = {"seconds": self.seconds, "data": self.files}
            folder = self.folder / "checkpoints"
            checkpoint.save(folder, self.step, *made, state, self.recipe.keep)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _stopped_by(self, number: signal.Signals) -> Iterator[None]:
        """The signal ends the run behind its step; only a main thread can hear one."""

        def stop(*_: Any) -> None:
            self._stop = True

        try:
            before = signal.signal(number, stop)
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            signal.signal(number, before)

    def export(self) -> Path:
        """The folder `mmdiff.load` reads: averaged weights in the recipe's dtype and processor, or
        the adapters alone."""
        model, main = self.averaged(), self.accelerator.is_main_process
        if self.recipe.shard:
            model = put_together(model, main)
        model.processor = self.processor
        if main and self.recipe.lora:
            adapters.save(model, self.folder, str(self.recipe.model))
        elif main:
            model.to(getattr(torch, self.recipe.save_dtype)).save_pretrained(self.folder)
            model.to(torch.float32)
        self.accelerator.wait_for_everyone()
        return self.folder


def _keep_lines_to(path: Path, step: int) -> None:
    """Drop the figures of steps still to be taken, and a line that a crash cut short."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            done = json.loads(line)["step"] <= step
        except ValueError:
            continue
        if done:
            kept.append(line + "\n")
    path.write_text("".join(kept))
