"""Projectors map vision features to the backbone's width, some of them with fewer tokens.

Every projector is called with (n, tokens, in_width) and returns (n, tokens_out(tokens), out_width).
The kinds:

- ``linear``: one matrix.
- ``mlp2x_gelu``: Linear, exact (erf) GELU, Linear, as in LLaVA-1.5; ``mlpNx_gelu`` has N linear
  maps.
- ``mlp2x_silu``: the same with SiLU, as in Dimple.
- ``pooler``: a convolution whose kernel and stride are ``ratio`` over the square token grid, GELU,
  Linear.
- ``avg_pool``: the mean over ``ratio`` x ``ratio`` cells of the grid, then ``mlp2x_gelu``.

The two pooling kinds leave out a last row and column that do not fill a cell (27 x 27 becomes 13 x
13), as the convolution of the published models does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from inspect import signature
from math import isqrt

import torch
from torch import nn
from torch.nn import functional as F

from mmdiff.errors import SettingError
from mmdiff.registry import Registry

PLACE_SCALE = 0.1

projectors: Registry[Callable[..., Projector]] = Registry("projector")


class Projector(nn.Module):
    """An optional LayerNorm, a reduction of the grid, ``layers``, then optional places.

    The norm is for encoders whose output has none, the places (a learned vector per row and per
    column of the grid) for encoders that do not say where a token stands, as convolutions do not.
    Subclasses replace `reduce` and `tokens_out`; this class keeps every token.
    """

    rows: nn.Parameter | None
    columns: nn.Parameter | None

    def __init__(self, in_width: int, layers: nn.Sequential, norm: bool = False):
        super().__init__()
        self.norm = nn.LayerNorm(in_width) if norm else nn.Identity()
        self.layers = layers
        self.register_parameter("rows", None)
        self.register_parameter("columns", None)

    def tokens_out(self, tokens: int) -> int:
        """The number of tokens that `forward` makes of `tokens`."""
        return tokens

    def reduce(self, features: torch.Tensor) -> torch.Tensor:
        return features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(n, tokens, in_width) -> (n, tokens_out(tokens), out_width)."""
        made: torch.Tensor = self.layers(self.reduce(self.norm(features)))
        if self.rows is None or self.columns is None:
            return made
        places = (self.rows + self.columns).flatten(0, 1)
        if len(places) != made.shape[1]:
            raise SettingError(
                f"projector: places is {len(self.rows)}, but the encoder gives {made.shape[1]} "
                "tokens; use the side of its token grid"
            )
        return made + places

    def add_places(self, side: int, width: int) -> None:
        self.rows = nn.Parameter(torch.randn(side, 1, width) * PLACE_SCALE)
        self.columns = nn.Parameter(torch.randn(1, side, width) * PLACE_SCALE)


class GridProjector(Projector):
    """Joins each ``ratio`` x ``ratio`` square of tokens, which form a square grid row by row."""

    def __init__(self, in_width: int, layers: nn.Sequential, ratio: int, norm: bool = False):
        super().__init__(in_width, layers, norm)
        if ratio < 1:
            raise SettingError(f"projector: ratio is {ratio}; use a whole number of at least 1")
        self.ratio = ratio

    def side(self, tokens: int) -> int:
        side = isqrt(tokens)
        if side * side != tokens or side < self.ratio:
            raise SettingError(
                f"projector: {tokens} tokens are not a square grid of side {self.ratio} or more; "
                "use projector mlp2x_gelu, which keeps every token"
            )
        return side

    def tokens_out(self, tokens: int) -> int:
        return (self.side(tokens) // self.ratio) ** 2

    def as_map(self, features: torch.Tensor) -> torch.Tensor:
        """(n, tokens, width) -> (n, width, side, side)."""
        return features.transpose(1, 2).unflatten(2, (self.side(features.shape[1]), -1))


class AveragePool(GridProjector):
    def reduce(self, features: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(self.as_map(features), self.ratio).flatten(2).transpose(1, 2)


class ConvPool(GridProjector):
    def __init__(self, in_width: int, out_width: int, ratio: int, norm: bool = False):
        layers = nn.Sequential(nn.GELU(), nn.Linear(out_width, out_width))
        super().__init__(in_width, layers, ratio, norm)
        self.conv = nn.Conv2d(in_width, out_width, kernel_size=ratio, stride=ratio)

    def reduce(self, features: torch.Tensor) -> torch.Tensor:
        return self.conv(self.as_map(features)).flatten(2).transpose(1, 2)


def mlp(
    in_width: int, out_width: int, depth: int, between: type[nn.Module] = nn.GELU
) -> nn.Sequential:
    """`depth` linear maps with an activation between them, an exact GELU by default."""
    layers: list[nn.Module] = [nn.Linear(in_width, out_width)]
    for _ in range(depth - 1):
        layers += [between(), nn.Linear(out_width, out_width)]
    return nn.Sequential(*layers)


@projectors.register("linear")
def linear(in_width: int, out_width: int, norm: bool = False) -> Projector:
    return Projector(in_width, mlp(in_width, out_width, 1), norm)


@projectors.register("mlp2x_gelu")
def mlp2x_gelu(in_width: int, out_width: int, norm: bool = False, depth: int = 2) -> Projector:
    return Projector(in_width, mlp(in_width, out_width, depth), norm)


@projectors.register("mlp2x_silu")
def mlp2x_silu(in_width: int, out_width: int, norm: bool = False) -> Projector:
    return Projector(in_width, mlp(in_width, out_width, 2, nn.SiLU), norm)


@projectors.register("pooler")
def pooler(in_width: int, out_width: int, norm: bool = False, ratio: int = 2) -> Projector:
    return ConvPool(in_width, out_width, ratio, norm)


@projectors.register("avg_pool")
def avg_pool(in_width: int, out_width: int, norm: bool = False, ratio: int = 2) -> Projector:
    return AveragePool(in_width, mlp(in_width, out_width, 2), ratio, norm)


def build_projector(kind: str, in_width: int, out_width: int, **options) -> Projector:
    """The projector `kind`; options: ``norm`` and ``places`` (side of the grid it gives; 0: none)
    for all kinds, ``ratio`` for the two that pool.

    Raises SettingError for an unknown kind, an option the kind does not have, or a ratio below 1.
    """
    places = options.pop("places", 0)
    deep = re.fullmatch(r"mlp([1-9]\d?)x_gelu", kind)
    build = projectors.get("mlp2x_gelu" if deep else kind)
    allowed = [name for name in signature(build).parameters if name in ("norm", "ratio")]
    for name in options:
        if name not in allowed:
            known = ", ".join([*allowed, "places"])
            raise SettingError(f"projector {kind}: unknown option {name!r}; it has {known}")
    if deep:
        options["depth"] = int(deep.group(1))
    projector = build(in_width, out_width, **options)
    if places:
        projector.add_places(places, out_width)
    return projector
