"""A training recipe: everything that decides a run, in one YAML file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from mmdiff.errors import SettingError


@dataclass(frozen=True)
class NewModel:
    """A model from scratch: transformers sizes, a vision encoder's spec, a fitted tokenizer."""

    text_config: dict[str, Any]
    vision_config: dict[str, Any]
    projector: dict[str, Any]
    vocab_size: int = 1024
    attention_layout: str = "prefix"
    decoding: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Objective:
    """What is minimised: settings of `mmdiff.diffusion.losses`, independent of each other."""

    complementary: bool = True
    weight: Literal["one", "inverse_p", "elbo"] = "one"
    denominator: Literal["answer", "masked", "row", "root", "batch"] = "answer"
    schedule: Literal["linear", "cosine"] = "linear"
    eps: float = 1e-3
    anchors: float = 0.0  # weight of the loss that picture cells name what stands in them


@dataclass(frozen=True)
class Recipe:
    """One run. `model` is a folder to continue from or the sizes of a new model."""

    model: NewModel | str
    data: str
    output: str
    max_steps: int
    batch_size: int = 32
    turns: int = 8  # questions about one picture, at most
    row_cells: int = 288  # prefix layout: the turns that fit share a row behind the picture's cells
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    muon_lr: float | None = None  # of optimizer=muon's matrices; None: lr
    warmup_steps: int = 100
    min_lr_ratio: float = 0.05
    decay: Literal["cosine", "linear"] = "cosine"
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    ema: float = 0.0  # 0: off
    attention: Literal["sdpa", "eager"] = "sdpa"  # of the training steps
    compile: bool = False  # torch.compile of the backbone in the training steps
    precision: Literal["float32", "bfloat16"] = "float32"
    save_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    objective: Objective = Objective()
    anchor_steps: int = 0  # first steps: encoder and projector learn from anchors alone
    seed: int = 0
    workers: int = 1
    save_every: int = 500
    keep: int = 2  # checkpoints kept
    validate_every: int = 500
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "save_every", "keep", "validate_every"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} must be at least 1")
        if self.lr <= 0 or self.clip <= 0:
            raise SettingError("lr and clip must be above 0")
        if not 0 <= self.ema < 1:
            raise SettingError("ema must lie in [0, 1)")
        if self.anchor_steps and not self.objective.anchors:
            raise SettingError("anchor_steps needs objective.anchors above 0")
        if self.turns < 0 or self.workers < 0 or self.warmup_steps < 0:
            raise SettingError("turns, workers and warmup_steps must not be negative")

    def rate(self, step: int) -> float:
        """Factor of the learning rates: linear warm-up, then cosine or linear decay to min_lr_ratio
        at max_steps. The anchor steps before have a warm-up of their own and no decay."""
        if step < self.anchor_steps:
            return min(1.0, (step + 1) / max(1, self.warmup_steps))
        step -= self.anchor_steps
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        span = max(1, self.max_steps - self.anchor_steps - self.warmup_steps)
        done = min(1.0, (step - self.warmup_steps) / span)
        left = 0.5 * (1 + math.cos(math.pi * done)) if self.decay == "cosine" else 1 - done
        return self.min_lr_ratio + (1 - self.min_lr_ratio) * left
