"""The training loop: one process, bf16 or float32, resumable at every checkpoint."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mmdiff.backbone import see_in_parts
from mmdiff.config import to_dict
from mmdiff.errors import SettingError, TrainingError
from mmdiff.training import checkpoint
from mmdiff.training.batches import Batches, batches
from mmdiff.training.build import build
from mmdiff.training.objective import batch_loss
from mmdiff.training.optimizer import make_optimizers, set_rate
from mmdiff.training.sources import open_source

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel
    from mmdiff.training.recipe import Recipe

VALIDATION_BATCHES = 4


class Trainer:
    """A run in its output folder: model, average, optimisers and the step reached."""

    def __init__(self, recipe: Recipe, device: str | None = None) -> None:
        self.recipe = recipe
        self.folder = Path(recipe.output)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model: MMDiffModel = build(recipe).to(self.device)
        if self.model.processor is None:
            raise TrainingError(f"{recipe.model} holds no processor files, which training needs")
        layout = self.model.config.attention_layout
        if recipe.objective.block and layout not in ("block", "causal_block"):
            raise SettingError(
                f"objective.block needs a model with attention_layout: block; this one has {layout}"
            )
        self.processor = self.model.processor
        limit = getattr(self.model.backbone.config, "max_position_embeddings", None)
        self.source = open_source(recipe, processor=self.processor, limit=limit)
        self.optimizers = make_optimizers(self.model, recipe)
        self.average = None
        if recipe.ema:
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
        if recipe.row_parts > 1:
            see_in_parts(self.model.backbone)
        else:
            self.model.backbone.set_attn_implementation(recipe.attention)
        if recipe.compile:
            self.model.backbone.compile()
        self.step = 0
        self.seconds = 0.0
        self._resume_or_start()

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
            state = checkpoint.restore(found[-1], self.modules, self.optimizers)
            self.step, self.seconds = state["step"], state["seconds"]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "recipe.json").write_text(json.dumps(to_dict(self.recipe), indent=2) + "\n")
        _keep_lines_to(self.folder / "log.jsonl", self.step)

    def run(self, report: Callable[[dict[str, Any]], None] | None = None) -> Path:
        """Train to max_steps, then save the model; `report` hears every step's figures."""
        torch.manual_seed(self.recipe.seed)
        layout = self.model.config.attention_layout
        stream = batches(self.source, self.recipe, self.processor, layout, self.step)
        for batch in stream:
            began = time.perf_counter()
            loss, norm = self._update(batch)
            self.seconds += time.perf_counter() - began
            row = {
                "step": self.step,
                "loss": loss,
                "norm": norm,
                "lr": self.recipe.lr * self.recipe.rate(self.step - 1),
                "seconds": self.seconds,
            }
            last = self.step == self.recipe.max_steps
            if last or self.step % self.recipe.validate_every == 0:
                row["validation"] = self.validate()
            self._log(row)
            if report:
                report(row)
            if last or self.step % self.recipe.save_every == 0:
                self._save()
        return self.export()

    def _update(self, batch: Any) -> tuple[float, float]:
        self.model.train()
        set_rate(self.optimizers, self.recipe, self.step)
        with self._autocast():
            loss = batch_loss(self.model, batch, self.recipe.objective)
        loss.backward()
        loss = loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        if not math.isfinite(float(loss)) or not math.isfinite(float(norm)):
            first, seed = self.step * self.recipe.batch_size, self.recipe.seed
            samples = range(first, first + self.recipe.batch_size)
            names = ", ".join(self.source.name(i, seed, "train") for i in samples)
            raise TrainingError(
                f"loss {float(loss)} with gradient norm {float(norm)} at step {self.step}; lower "
                f"lr or check these samples: {names}"
            )
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        return float(loss), float(norm)

    def _autocast(self) -> torch.autocast:
        enabled = self.recipe.precision == "bfloat16"
        return torch.autocast(self.device, torch.bfloat16, enabled=enabled)

    @torch.no_grad()
    def validate(self) -> float:
        """Loss on fixed validation samples and masks, by the averaged weights if there are."""
        model = self.averaged()
        model.eval()
        packed = model.config.attention_layout != "full"
        objective = replace(self.recipe.objective, anchors=0.0)
        dataset = Batches(self.source, self.processor, self.recipe, packed, "validation")
        with self._autocast():
            losses = [
                float(batch_loss(model, dataset[i], objective)) for i in range(VALIDATION_BATCHES)
            ]
        return sum(losses) / len(losses)

    def averaged(self) -> MMDiffModel:
        return self.model if self.average is None else cast("MMDiffModel", self.average.module)

    def _log(self, row: dict[str, Any]) -> None:
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _save(self) -> None:
        checkpoint.save(
            self.folder / "checkpoints",
            self.step,
            self.modules,
            self.optimizers,
            {"seconds": self.seconds},
            self.recipe.keep,
        )

    def export(self) -> Path:
        """The folder `mmdiff.load` reads: averaged weights in the recipe's dtype, processor."""
        model = self.averaged()
        model.processor = self.processor
        model.to(getattr(torch, self.recipe.save_dtype)).save_pretrained(self.folder)
        model.to(torch.float32)
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
