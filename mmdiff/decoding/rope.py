"""Longer canvases than a backbone was trained on: a larger rotary base, without training.

NTK scaling as LongLLaDA uses it (arXiv:2506.14429): the inverse frequencies of `depth` rotated
dimensions, base ^ (-2 i / depth), become those of lambda base.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmdiff.decoding.settings import parse_rule, whole, with_options
from mmdiff.errors import SettingError

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel


def ntk_factor(base: float, depth: int, trained: int, wanted: int) -> int:
    """lambda = (wanted / 2 pi) ^ (depth / critical) / base, rounded up, which the published factors
    are: 4, 14 and 31 for LLaDA's base 500000, 4096 trained and 8192, 16384 and 24576 wanted cells.

    critical = 2 ceil(depth / 2 log_base(trained / 2 pi)) dimensions turned whole circles in
    training. With it the first one that did not turns as far over `wanted` as it must.
    """
    critical = 2 * math.ceil(depth / 2 * math.log(trained / (2 * math.pi), base))
    return math.ceil((wanted / (2 * math.pi)) ** (depth / critical) / base)


def inverse_frequencies(base: float, depth: int) -> Tensor:
    """(depth / 2,) float64: base ^ (-2 i / depth)."""
    return base ** (-torch.arange(0, depth, 2, dtype=torch.float64) / depth)


def longest(config: Any, rule: float | str) -> int | None:
    """How many cells a canvas may have; None: any number."""
    trained: int | None = getattr(config, "max_position_embeddings", None)
    if isinstance(rule, str):
        return _lengths(rule, trained)[1]
    return trained if rule == 1 else None


@contextmanager
def scaled(model: MMDiffModel, rule: float | str) -> Iterator[None]:
    """The model with its backbone's rotary base times `rule`: a number, or `ntk:length=N,trained=M`
    for ntk_factor, where `trained` is its config's max_position_embeddings if left out.

    Raises SettingError for a backbone that does not rotate by one base.
    """
    if rule == 1:
        yield
        return
    rotary: Any = getattr(model.backbone, "rotary_emb", None)
    kept: Any = getattr(rotary, "inv_freq", None)
    config = model.backbone.config
    base = (getattr(config, "rope_parameters", None) or {}).get("rope_theta")
    depth = 0 if kept is None else 2 * len(kept)
    # Any other recipe (yarn, llama3, ...) shows in the frequencies, whatever its name.
    if base is None or not torch.allclose(
        kept.double().cpu(), inverse_frequencies(base, depth), rtol=1e-2
    ):
        raise SettingError(
            f"rope_scale={rule}: this {config.model_type} backbone does not rotate by one base; "
            "use rope_scale=1"
        )
    if isinstance(rule, str):
        lengths = _lengths(rule, getattr(config, "max_position_embeddings", None))
        rule = ntk_factor(base, depth, *lengths)
    elif not 0 < rule < math.inf:
        raise SettingError(f"rope_scale={rule} must be finite and above 0")
    rotary.inv_freq = inverse_frequencies(base * rule, depth).to(kept)
    try:
        yield
    finally:
        rotary.inv_freq = kept


def _lengths(rule: str, trained: int | None) -> tuple[int, int]:
    """Trained and wanted cells of `ntk:length=N,trained=M`."""
    name, given = parse_rule(rule)
    if name != "ntk" or "length" not in given:
        raise SettingError(f"rope_scale={rule}: use a number, or ntk:length=N for N wanted cells")
    chosen = with_options("rope_scale=ntk", given, {"length": 0, "trained": trained or 0})
    # Seven cells are the first that are more than a circle.
    lengths = [whole(f"rope_scale=ntk: {n}", chosen[n], least=7) for n in ("trained", "length")]
    return lengths[0], lengths[1]
