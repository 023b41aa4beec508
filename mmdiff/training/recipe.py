"""A training recipe: everything that decides a run, in one YAML file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mmdiff.config import preset
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
class Rates:
    """What each part's learning rate is multiplied with; 0 freezes the part."""

    vision: float = 1.0
    projector: float = 1.0
    backbone: float = 1.0

    def __post_init__(self) -> None:
        given = (self.vision, self.projector, self.backbone)
        if min(given) < 0 or not any(given):
            raise SettingError("rates must not be negative, and one must be above 0")


@dataclass(frozen=True)
class Lora:
    """Adapters in the backbone's linear layers, which then learn in its place (peft)."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ()  # names of layers; none: all linear ones
    dora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise SettingError("lora needs rank and alpha of 1 or more and dropout in [0, 1)")


@dataclass(frozen=True)
class Objective:
    """What is minimised: settings of `mmdiff.diffusion`, independent of each other.

    loss = sum over scored cells of weight x cross-entropy / denominator. `preset: NAME` stands for
    the settings of `configs/objective/NAME.yaml`, of which others given beside it take the place.
    """

    # Which cells become noise.
    complementary: bool = True  # every answer twice, with masks that partition it
    schedule: Literal["linear", "cosine", "mdlm_linear", "mdlm_cosine", "mdlm_log"] = "linear"
    eps: float = 1e-3  # of the schedule
    low: float = 0.0  # times t lie in [low, high]
    high: float = 1.0
    times: Literal["golden", "stratified", "independent"] = "golden"
    block: int = 0  # cells per block, each with its time and clean context; 0: the whole answer
    exact: bool = False  # exactly round(p n) cells are masked, not each with probability p
    half_life: float | None = None  # of exact: later cells first, by this share of the length
    at_least_one: bool = False  # some masked cell in every answer or block
    frontier: int = 0  # cells per block: one is masked by p and scored, behind it all are masked
    noise: Literal["mask", "uniform"] = "mask"  # masked cells show the mask token, or any word
    autoregressive: bool = False  # next tokens under causal attention; nothing is masked
    replace: float = 0.0  # share of answer cells that show a random id where they are not masked
    padding: Literal["random", "one", "room"] = "random"  # end-of-text cells of an answer
    # What they weigh.
    weight: Literal["one", "inverse_p", "elbo", "cart"] = "one"
    cart: float = 0.3  # p of weight=cart
    denominator: Literal["answer", "masked", "row", "root", "group", "examples", "batch"] = "answer"
    without_mask_token: bool = False  # the mask token takes no part in the softmax
    certainty: float = 0.0  # weight of the entropy of cells that are right already
    certainty_temperature: float = 0.5
    anchors: float = 0.0  # weight of the loss that picture cells name what stands in them
    compat: Literal["none", "dllm", "dparallel", "efficient_dlm", "lavida", "mdlm", "rediff"] = (
        "none"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise SettingError("low and high must be times: 0 <= low <= high <= 1")
        if not 0 <= self.eps < 1 or not 0 <= self.replace < 1 or not 0 < self.cart < 1:
            raise SettingError("eps, replace and cart must lie in [0, 1)")
        if min(self.block, self.frontier, self.anchors, self.certainty) < 0:
            raise SettingError("block, frontier, anchors and certainty must not be negative")
        if self.half_life is not None and (not self.exact or self.half_life <= 0):
            raise SettingError("half_life must be above 0 and needs exact=true")
        if self.at_least_one and not self.exact and self.weight in ("inverse_p", "elbo"):
            raise SettingError(
                f"at_least_one masks more cells than weight={self.weight} accounts for; "
                "use weight=one"
            )
        self._check_kinds()
        for name, setting, value in COMPAT:
            if self.compat == name and getattr(self, setting) != value:
                raise SettingError(f"compat={name} repeats how {setting}={value} was published")

    @property
    def other_ids(self) -> bool:
        """Whether some cells show random words."""
        return self.replace > 0 or self.noise == "uniform"

    def _check_kinds(self) -> None:
        """Of autoregressive, noise=uniform and frontier, each with what goes with it."""
        if self.autoregressive and (self.block or self.noise == "uniform"):
            raise SettingError("autoregressive masks nothing: it has neither block nor noise")
        pure = not (self.complementary or self.replace or self.frontier) and self.weight == "one"
        if (self.autoregressive or self.noise == "uniform") and not pure:
            name = "autoregressive" if self.autoregressive else "noise=uniform"
            raise SettingError(
                f"{name} scores every answer cell once, masked or not: it needs "
                "complementary=false and weight=one, and neither replace nor frontier"
            )
        other = self.block or self.exact or self.at_least_one or self.replace
        if self.frontier and (other or self.low != self.high):
            raise SettingError(
                "frontier draws its block by the time: it needs low and high to be equal, and "
                "neither block, exact, at_least_one nor replace"
            )
        if self.certainty and (self.denominator != "group" or self.certainty_temperature <= 0):
            raise SettingError(
                "certainty takes means by example: it needs denominator=group, and "
                "certainty_temperature above 0"
            )

    @staticmethod
    def expand(written: Any) -> Any:
        """A preset's name, or `preset: NAME` among settings, as the settings it stands for."""
        if isinstance(written, str):
            written = {"preset": written}
        if not isinstance(written, Mapping) or "preset" not in written:
            return written
        rest = {key: value for key, value in written.items() if key != "preset"}
        return {**preset("objective", written["preset"]), **rest}


# What each compat name changes needs this setting.
COMPAT = (
    ("dllm", "weight", "inverse_p"),
    ("dparallel", "denominator", "group"),
    ("efficient_dlm", "exact", True),
    ("lavida", "at_least_one", True),
    ("mdlm", "schedule", "mdlm_log"),
    ("mdlm", "weight", "elbo"),
    ("rediff", "denominator", "group"),
)


@dataclass(frozen=True)
class Part:
    """Part of a mixture: a source's name or a data file. `weight` is relative to the other parts'
    and by default the number of rows; `take` is all, first:N or random:N of the good rows."""

    data: str
    weight: float | None = None
    take: str = "all"
    image_root: str | None = None

    def __post_init__(self) -> None:
        if self.weight is not None and not 0 < self.weight < math.inf:
            raise SettingError("weight must be above 0")
        if not re.fullmatch(r"all|(first|random):[1-9][0-9]{0,11}", self.take):
            raise SettingError(f"take must be all, first:N or random:N, got {self.take!r}")


@dataclass(frozen=True)
class Recipe:
    """One run. `model` is a folder to continue from or the sizes of a new model, `data` a source's
    name, a data file or a mixture."""

    model: NewModel | str
    data: str | tuple[Part, ...]
    output: str
    max_steps: int
    batch_size: int = 32  # samples of a step, whatever shares them
    accumulate: int = 1  # parts in which each process takes its samples, to save memory
    image_root: str | None = None  # of data files: where pictures are, see docs/training.md
    bad_rows: Literal["stop", "skip"] = "stop"  # of data files
    unique_ids: bool = True  # of data files: a second row with an id is bad
    validation: float | str = 0.02  # of data files: the share of rows held out, or another file
    validation_by: Literal["picture", "question"] = "picture"  # rows with one are held out together
    answers: Literal["every", "random_one"] = "every"  # of a conversation: those trained at a time
    conversation: Literal["by_answer", "by_turn"] | None = None  # None: as the model was trained
    answer_cells: int = 64  # of data files: end-of-text pads answers to at most so many cells
    group_lengths: int = 0  # of data files: sort so many batches' samples by length; 0: as drawn
    turns: int = 8  # of generated sources: questions about one picture, at most
    row_cells: int = 288  # prefix layout: the turns that fit share a row behind the picture's cells
    row_parts: int = 1  # of a packed row: turns of one do not see others', so attention is shorter
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    muon_lr: float | None = None  # of optimizer=muon's matrices; None: lr
    rates: Rates = Rates()
    lora: Lora | None = None
    warmup_steps: int = 100
    min_lr_ratio: float = 0.05
    decay: Literal["cosine", "linear"] = "cosine"
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    ema: float = 0.0  # 0: off
    attention: Literal["sdpa", "eager"] = "sdpa"  # of the training steps
    gradient_checkpointing: bool = False  # of the backbone: less memory, slower steps
    compile: bool = False  # torch.compile of the backbone in the training steps
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    shard: bool = False  # each process holds a part of weights and optimiser states (FSDP2)
    save_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    objective: Objective = Objective()
    anchor_steps: int = 0  # first steps: encoder and projector learn from anchors alone
    seed: int = 0
    workers: int = 1
    save_every: int = 500
    keep: int = 2  # checkpoints kept
    validate_every: int = 500
    resume: bool = False
    changed_data: Literal["stop", "accept"] = "stop"  # where a data file is another since the run
    report: Literal["tensorboard", "wandb", "none"] = "tensorboard"  # beside log.jsonl

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_together()

    def _check_ranges(self) -> None:
        counts = ("max_steps", "batch_size", "accumulate", "row_cells", "answer_cells")
        for name in (*counts, "save_every", "keep", "validate_every", "row_parts"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} must be at least 1")
        if not self.data:
            raise SettingError("data must name a source, a file or a list of parts")
        if not isinstance(self.validation, str) and not 0 < self.validation < 1:
            raise SettingError("validation must be a share between 0 and 1, or a data file")
        if self.lr <= 0 or self.clip <= 0:
            raise SettingError("lr and clip must be above 0")
        if not 0 <= self.ema < 1:
            raise SettingError("ema must lie in [0, 1)")
        if min(self.turns, self.workers, self.warmup_steps, self.group_lengths) < 0:
            raise SettingError("turns, workers, warmup_steps, group_lengths must not be negative")

    def _check_together(self) -> None:
        objective = self.objective
        if self.anchor_steps and not objective.anchors:
            raise SettingError("anchor_steps needs objective.anchors above 0")
        in_order = objective.block or objective.autoregressive
        if self.row_parts > 1 and in_order:
            raise SettingError(
                "row_parts goes without objective.block and objective.autoregressive"
            )
        if self.conversation == "by_turn" and (in_order or self.row_parts > 1):
            raise SettingError(
                "conversation=by_turn goes without objective.block, objective.autoregressive and "
                "row_parts"
            )
        needs_all = self.optimizer == "muon" or self.ema or self.lora or self.compile
        if self.shard and (needs_all or self.precision == "float16"):
            raise SettingError(
                "shard=true goes with optimizer=adamw, float32 or bfloat16, without ema, lora and "
                "compile"
            )

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
