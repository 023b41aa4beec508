"""What a tabletop scene is: words, dataclasses, JSON, and the random helpers of the world.

Lengths: `x` is a fraction of the width, `y` of the height (0 is the top), and every radius is in
units of sqrt(width * height), so a picture's aspect does not change how large an object looks.
Specification: docs/worlds/tabletop.md.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

T = TypeVar("T")
RGB = tuple[int, int, int]

COLOURS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white",
)  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
SYNONYMS = {"circle": "ball", "square": "box"}
MAX_OBJECTS = 6

# Colour-shape pairs that no training picture, caption or question contains.
HELD_OUT = (
    ("purple", "circle"),
    ("pink", "square"),
    ("orange", "triangle"),
    ("green", "star"),
    ("blue", "heart"),
    ("yellow", "cross"),
)

SMALL_RADIUS = (0.08, 0.11)
LARGE_RADIUS = (0.18, 0.26)
LARGEST_RADIUS = 0.45  # of the shorter side; an object alone in the picture may be this large


@dataclass(frozen=True)
class Obj:
    """One object; `rgb` is its paint, `mark_rgb` the paint of its stripes or dots."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    rotation: float  # degrees, clockwise
    aspect: float  # width over height before rotation
    form: float  # [0, 1], the shape's own freedom: how deep a star, how thick a cross
    grain: float  # [0, 1], direction of stripes and dots, as a part of half a turn
    rgb: RGB
    mark_rgb: RGB
    outline: float = 0.0  # width in radii; 0 is none
    outline_rgb: RGB = (0, 0, 0)


@dataclass(frozen=True)
class Background:
    """What lies behind: `kind` uses the two colours, `level` is its horizon height or angle."""

    kind: str
    first: RGB
    second: RGB
    level: float


@dataclass(frozen=True)
class Look:
    """How the picture was made; zero switches a defect off."""

    shaded: bool
    light: float  # every value is multiplied by light * cast
    cast: tuple[float, float, float]
    noise: float  # standard deviation in 0..255 values
    blur: float  # Gaussian radius in units of sqrt(width * height)
    jpeg: int  # quality; 0 is no compression
    vignette: float  # light lost in the corners
    shadow: float  # darkness of the shadow below objects
    clutter: int  # specks and thin lines in the background

    @property
    def gain(self) -> tuple[float, float, float]:
        """What the light multiplies each channel by."""
        red, green, blue = (self.light * channel for channel in self.cast)
        return red, green, blue


@dataclass(frozen=True)
class Scene:
    """A whole picture, from which everything else follows; `seed` feeds grain and clutter."""

    objects: tuple[Obj, ...]
    background: Background
    look: Look
    width: int
    height: int
    seed: int

    @property
    def left_to_right(self) -> tuple[Obj, ...]:
        """The objects in the order captions name them."""
        return tuple(sorted(self.objects, key=lambda obj: obj.x))

    def to_dict(self) -> dict[str, Any]:
        """The scene as plain dictionaries and tuples, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Scene:
        """Inverse of `to_dict`, also after a way through JSON (lists become tuples again)."""
        record = dict(record)
        record["objects"] = tuple(Obj(**_tuples(obj)) for obj in record["objects"])
        record["background"] = Background(**_tuples(record["background"]))
        record["look"] = Look(**_tuples(record["look"]))
        return cls(**record)


def _tuples(record: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}


# Only Random.random() is used, since the other methods may change between Python versions.


def stream(*names: object) -> random.Random:
    """A random stream owned by a name, such as stream("train", seed, index)."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """One of the items, all equally likely."""
    return items[int(rng.random() * len(items))]


def between(rng: random.Random, low: float, high: float) -> float:
    """Uniform in [low, high), rounded so that its JSON is canonical."""
    return round(low + (high - low) * rng.random(), 4)


def weighted(rng: random.Random, weights: dict[T, float]) -> T:
    """One of the keys, as likely as its weight says."""
    rest = rng.random() * sum(weights.values())
    for item, weight in weights.items():
        rest -= weight
        if rest < 0:
            return item
    return item


def shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    """Return the items in random order (Fisher and Yates)."""
    out = list(items)
    for last in range(len(out) - 1, 0, -1):
        other = int(rng.random() * (last + 1))
        out[last], out[other] = out[other], out[last]
    return out
