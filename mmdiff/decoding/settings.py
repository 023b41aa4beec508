"""Decoding settings: the same names in Python, YAML and `key=value` on the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmdiff.config import build, parse_value, preset
from mmdiff.errors import SettingError, nearest


@dataclass(frozen=True)
class Decoding:
    """How the holes of a canvas are filled.

    Rules may carry options after a colon: `accept="threshold:value=0.9"`.
    """

    max_new_tokens: int = 32  # N, cells of the answer
    steps: int | None = None  # decisions in total, split over blocks; None: one cell per step
    block_length: int | None = None  # cells decided together; None: the whole answer
    schedule: str = "linear"  # linear | shift | cosine | logit_normal | timestep | rate
    shift: float = 3.0  # of schedule=shift; below 1 reveals many cells early
    eps: float = 1e-3  # of schedule=timestep, accept=confident and origin: the last time
    order: str = "confidence"  # confidence | margin | entropy | random | left_to_right
    order_temperature: float = 0.0  # above 0 draws the scheduled cells by softmax(score / it)
    # schedule | threshold | factor | dynamic | confident | confident_origin | entropy_bound |
    # origin | maskgit | saber:n=2 | entropy:most=0.5 | klass:above=0.9,kl=0.01,history=2 | policy
    accept: str = "schedule"
    policy: str | None = None  # of accept=policy: the folder of a trained network
    threshold: float = 0.9  # accept=threshold: from this probability on; dynamic, confident: above
    factor: float = 1.0  # of accept=factor
    entropy_bound: float = 0.1  # of accept=entropy_bound: of all accepted cells but the last
    temperature: float = 0.0
    temperature_end: float | None = None  # falls from temperature to it over the steps; None: not
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    # auto (block or prefix where exact) | none | prefix | prefill | block | suffix | freeze |
    # dual | delayed:reload=8 | greedy:reload=2,window=4 | refresh:prompt=100,answer=7,share=0.25 |
    # max_logit:ratio=0.9,warmup=0.3,refresh=5
    cache: str = "auto"
    # fixed | grow:factor=8,end=0.5,keep=0.9,low=0.1,check=32,most=2048 |
    # dynamic:least=1,above=0.5 | adablock:id=198,sure=0.3,share=0.25
    length: str = "fixed"
    # times the rotary base, or from lengths: ntk:length=8192,trained=4096
    rope_scale: float | str = 1.0
    speculate: str = "none"  # none | freedave:drafts=4
    cfg_scale: float = 0.0  # guidance away from what the model says without the prompt; 0: off
    # (first id, how many): cells take these ids alone, image codes; None: text, no image codes
    codes: tuple[int, int] | None = None
    forbid: tuple[int, ...] = ()  # ids that no cell may take
    late: tuple[int, ...] = ()  # ids that are accepted only where nothing else is left
    # what happens to decided cells: none | revise:top=1,start=1,above=0 | drop:least=1,share=8 |
    # remdm_cap:eta=0.02,on=1 | remdm_rescale:eta=0.02,on=1 | remdm_conf:on=1
    remask: str = "none"
    stop_ids: tuple[int, ...] = ()  # ids that end a text beside the model's end-of-text
    # end_of_text | cut | block | repeats:times=20 | batch_block_end | none |
    # stable:stability=,confidence= | prophet | sched | sched_cosine | sched_exponential
    stop: str = "end_of_text"
    seed: int | tuple[int, ...] = 0  # one for every row, or one per row
    trace: bool = False  # keep every step
    # Behave as a published project's code, random draws included:
    # llada | dream | lavida_dream | fast_dllm | sdar | mmada | mmada_image | lumina |
    # lumina_image | dimple | dimple_filtered | saber
    compat: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "steps", "block_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"{name}={value} must be at least 1")
        between("threshold", self.threshold, 0, 1)
        between("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise SettingError("top_p=0 keeps no token; use a value in (0, 1]")
        if not 0 <= self.temperature < math.inf or self.top_k < 0:
            raise SettingError("temperature and top_k must be finite and not negative")
        if not 0 <= self.order_temperature < math.inf or not 0 <= self.cfg_scale < math.inf:
            raise SettingError("order_temperature and cfg_scale must be finite and not negative")
        if not 0 <= self.factor < math.inf:
            raise SettingError(f"factor={self.factor} must be finite and not negative")
        if self.temperature_end is not None and not 0 < self.temperature_end <= self.temperature:
            raise SettingError(
                f"temperature_end={self.temperature_end} must lie above 0 and not above "
                f"temperature={self.temperature}"
            )
        if not 0 < self.entropy_bound < math.inf:
            raise SettingError(f"entropy_bound={self.entropy_bound} must be finite and above 0")
        if not 0 < self.eps < 1:
            raise SettingError(f"eps={self.eps} must lie in (0, 1)")
        if not 0 < self.shift < math.inf:
            raise SettingError(f"shift={self.shift} must be finite and above 0")
        if self.steps is not None and self.steps < self.blocks:
            raise SettingError(
                f"steps={self.steps} is fewer than the {self.blocks} blocks of {self.block_length} "
                f"cells; raise steps or block_length"
            )

    @property
    def blocks(self) -> int:
        return -(-self.max_new_tokens // (self.block_length or self.max_new_tokens))

    def steps_of_block(self, block: int) -> int | None:
        """Steps of block 0, 1, ...: the total split evenly, the remainder to the first blocks."""
        if self.steps is None:
            return None
        return self.steps // self.blocks + (block < self.steps % self.blocks)


# What `accept=RULE:value=x` sets.
VALUES = {name: name for name in ("threshold", "factor", "entropy_bound")}
VALUES |= dict.fromkeys(("dynamic", "confident", "confident_origin"), "threshold")


# What belongs to a request and its model; a preset leaves it as earlier layers said.
REQUEST = ("max_new_tokens", "codes", "forbid", "late", "stop_ids", "seed", "trace")


def make_decoding(*layers: Mapping[str, Any]) -> Decoding:
    """Settings from mappings, later ones winning; unknown names raise SettingError.

    `preset: NAME` in a layer stands for `configs/decode/NAME.yaml`, a whole recipe: it takes the
    place of earlier layers, but for what belongs to the request, and others beside it win.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        beside = dict(layer)
        name = beside.pop("preset", None)
        if name is not None:
            merged = {key: value for key, value in merged.items() if key in REQUEST}
            _add(merged, preset("decode", name))
        _add(merged, beside)
    for name in ("seed", "forbid", "late", "stop_ids", "codes"):
        if isinstance(merged.get(name), list):
            merged[name] = tuple(merged[name])
    return build(Decoding, merged, "decoding settings")


def _add(merged: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Put a layer on top; `accept=RULE:value=x` becomes the settings it stands for."""
    merged.update(layer)
    name, options = parse_rule(str(merged.get("accept", Decoding.accept)))
    merged["accept"] = name
    if name in VALUES and "value" in options:
        merged[VALUES[name]] = options.pop("value")
    if options and (name in VALUES or "value" in options):
        raise SettingError(f"accept={name} has no option {next(iter(options))!r}")
    if options:  # the rule's own, which it checks itself
        merged["accept"] += ":" + ",".join(f"{k}={v}" for k, v in options.items())


def parse_rule(text: str) -> tuple[str, dict[str, Any]]:
    """`name:option=value,option=value` -> (name, options)."""
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise SettingError(f"rule {text!r}: {item!r} is not option=value")
        options[key.strip()] = parse_value(value)
    return name, options


def with_options(
    rule: str, given: Mapping[str, Any], known: Mapping[str, float]
) -> dict[str, float]:
    """Options of a rule over its defaults; raises SettingError for an unknown one."""
    for name, value in given.items():
        if name not in known:
            raise SettingError(f"{rule} has no option {name!r}.{nearest(name, known)}")
        if not isinstance(value, int | float):
            raise SettingError(f"{rule}: {name}={value!r} is not a number")
    return {**known, **given}


def whole(name: str, value: float, least: int = 1) -> int:
    """`value` as an int. Raises SettingError where it is none, or below `least`."""
    if value != int(value) or value < least:
        raise SettingError(f"{name}={value} must be a whole number, at least {least}")
    return int(value)


def with_seed(settings: Decoding, rows: int) -> list[int]:
    """One seed per row. Raises SettingError when a list of another length was given."""
    if isinstance(settings.seed, int):
        return [settings.seed] * rows
    if len(settings.seed) != rows:
        raise SettingError(f"seed lists {len(settings.seed)} seeds for {rows} rows")
    return list(settings.seed)


def cooled(settings: Decoding, step: Any) -> Decoding:
    """The settings with the temperature of step 0, 1, ..., an int or a tensor of one."""
    if settings.temperature_end is None:
        return settings
    steps = settings.steps or settings.max_new_tokens
    remaining = max(1, steps - int(step))
    now = linear_temperature(remaining, steps, settings.temperature, settings.temperature_end)
    return replace(settings, temperature=now, temperature_end=None)


def linear_temperature(remaining: int, steps: int, first: float, last: float) -> float:
    """With `remaining` of `steps` steps to go: `first` before any, `last` after all (DiffusionGemma
    in transformers), which the last step itself does not reach."""
    return last + (first - last) * (remaining / steps)


def limited(settings: Decoding, cells: int) -> Decoding:
    """The same settings for an answer region of another size (infilling templates)."""
    steps = settings.steps
    blocks = -(-cells // (settings.block_length or cells))
    return replace(
        settings,
        max_new_tokens=cells,
        steps=None if steps is None else max(steps, blocks),
    )


def check_name(setting: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SettingError(
            f"{setting}={value} is unknown; choose one of {', '.join(known)}."
            f"{nearest(value, known)}"
        )


def check_beside(rule: str, settings: Decoding, **fits: tuple[Any, ...]) -> None:
    """Raises SettingError where a setting has none of the values that go with `rule`."""
    for name, known in fits.items():
        value = getattr(settings, name)
        chosen = parse_rule(value)[0] if isinstance(value, str) else value
        if chosen not in known:
            listed = " or ".join(str(each) for each in known)
            raise SettingError(f"{rule} does not go with {name}={chosen}; use {name}={listed}")


def between(name: str, value: float, low: float, high: float) -> None:
    """Raises SettingError where `value` lies outside [low, high]."""
    if not low <= value <= high:
        raise SettingError(f"{name}={value} must lie in [{low}, {high}]")


PLAIN = Decoding()
