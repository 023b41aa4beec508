"""The ten colour names: paints that carry each name, and when light makes a paint lose it.

Hue is in degrees, saturation and value in [0, 1]. The regions in `PAINTS` keep clear gaps; `SEEN`
are the slightly wider regions a paint must still be in after lighting, also with gaps between.
"""

from __future__ import annotations

import colorsys
import random
from collections.abc import Iterable

from mmdiff.data.worlds.tabletop_spec import RGB, between, pick, shuffled

Range = tuple[float, float]

PAINTS: dict[str, tuple[Range, Range, Range]] = {
    "red": ((-8, 5), (0.8, 1.0), (0.8, 1.0)),
    "orange": ((25, 36), (0.85, 1.0), (0.92, 1.0)),
    "yellow": ((51, 60), (0.65, 1.0), (0.92, 1.0)),
    "green": ((95, 150), (0.5, 1.0), (0.4, 0.9)),
    "blue": ((206, 240), (0.6, 1.0), (0.55, 1.0)),
    "purple": ((266, 294), (0.5, 0.95), (0.42, 0.8)),
    "pink": ((322, 348), (0.25, 0.52), (0.96, 1.0)),
    "brown": ((15, 28), (0.55, 0.85), (0.34, 0.55)),
    "black": ((0, 360), (0.0, 0.3), (0.0, 0.11)),
    "white": ((0, 360), (0.0, 0.04), (0.95, 1.0)),
}

SEEN: dict[str, tuple[Range, Range, Range]] = {
    "red": ((-12, 8), (0.72, 1.0), (0.74, 1.0)),
    "orange": ((20, 41), (0.72, 1.0), (0.74, 1.0)),
    "yellow": ((47, 65), (0.55, 1.0), (0.7, 1.0)),
    "green": ((90, 156), (0.4, 1.0), (0.3, 1.0)),
    "blue": ((200, 244), (0.5, 1.0), (0.42, 1.0)),
    "purple": ((260, 304), (0.4, 1.0), (0.33, 0.9)),
    "pink": ((312, 354), (0.16, 0.62), (0.75, 1.0)),
    "brown": ((-3, 32), (0.42, 0.92), (0.26, 0.66)),
    "black": ((0, 360), (0.0, 1.0), (0.0, 0.14)),
    "white": ((0, 360), (0.0, 0.12), (0.7, 1.0)),
}

# What people type: X11, matplotlib's tab colours, Material.
EXACT: dict[str, tuple[str, ...]] = {
    "red": ("ff0000", "ff0000", "d62728", "e53935", "e41a1c"),
    "orange": ("ffa500", "ffa500", "ff7f0e", "ff8c00", "fb8c00"),
    "yellow": ("ffff00", "ffff00", "ffd700", "fdd835", "ffeb3b"),
    "green": ("00ff00", "008000", "008000", "2ca02c", "32cd32", "228b22", "4caf50"),
    "blue": ("0000ff", "0000ff", "1f77b4", "1e90ff", "4169e1", "2196f3", "0000cd"),
    "purple": ("800080", "800080", "9467bd", "8a2be2", "9c27b0", "663399"),
    "pink": ("ffc0cb", "ffc0cb", "ff69b4", "e377c2", "ffb6c1"),
    "brown": ("a52a2a", "8b4513", "8c564b", "795548", "6d4c41"),
    "black": ("000000", "000000", "111111", "1a1a1a"),
    "white": ("ffffff", "ffffff", "fafafa", "f5f5f5"),
}

# Stripes and dots: darker or lighter than the paint, whichever keeps the name (a dark yellow looks
# brown, a light red pink).
_DARKER = {"red": 0.6, "pink": 0.78, "white": 0.72, "green": 0.55, "blue": 0.5, "purple": 0.5,
           "brown": 0.5, "yellow": 0.76}  # fmt: skip
_LIGHTER = {"orange": 0.6, "yellow": 0.7, "green": 0.6, "blue": 0.6, "purple": 0.6, "pink": 0.7,
            "brown": 0.45, "black": 0.36}  # fmt: skip
MARK_CONTRAST = 60.0
CONTRAST = 85.0  # least RGB distance between an object without outline and what lies behind it


def paint(rng: random.Random, colour: str, gain: tuple[float, float, float], exact: bool) -> RGB:
    """A paint that is still called `colour` after each channel was multiplied by `gain`."""
    for _ in range(12):
        rgb = _from_hex(pick(rng, EXACT[colour])) if exact else _from_box(rng, colour)
        if is_seen_as(lit(rgb, gain), colour):
            return rgb
        exact = exact and rng.random() < 0.7
    # The middle of the region, rather bright, is the paint that bears the most light and the least.
    hues, saturations, values = PAINTS[colour]
    return _rgb(sum(hues) / 2, sum(saturations) / 2, (values[0] + 2 * values[1]) / 3)


def is_seen_as(rgb: RGB, colour: str) -> bool:
    """Whether a lit paint still lies in the region of its name."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in rgb))
    hues, saturations, values = SEEN[colour]
    turned = any(hues[0] <= hue * 360 + turn <= hues[1] for turn in (0, -360))
    return (
        turned
        and saturations[0] <= saturation <= saturations[1]
        and values[0] <= value <= values[1]
    )


def lit(rgb: RGB, gain: tuple[float, float, float]) -> RGB:
    """The paint under a light that multiplies each channel by `gain`."""
    red, green, blue = (min(255, round(c * g)) for c, g in zip(rgb, gain, strict=True))
    return red, green, blue


def mark(rng: random.Random, rgb: RGB, colour: str) -> RGB:
    """The paint of stripes and dots on `rgb`."""
    shades: list[RGB] = []
    if colour in _DARKER:
        shades.append(mixed(rgb, (0, 0, 0), 1 - _DARKER[colour]))
    if colour in _LIGHTER:
        shades.append(mixed(rgb, (255, 255, 255), _LIGHTER[colour]))
    for shade in shuffled(rng, shades):
        if distance(shade, rgb) >= MARK_CONTRAST:
            return shade
    return max(shades, key=lambda shade: distance(shade, rgb))


def mixed(first: RGB, second: RGB, part: float) -> RGB:
    """The colour a `part` of the way from first to second."""
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(first, second, strict=True))
    return red, green, blue


def distance(first: RGB, second: RGB) -> float:
    """Euclidean distance in RGB, 0 to 442."""
    return float(sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) ** 0.5)


def stands_out(rgb: RGB, behind: Iterable[RGB], contrast: float = CONTRAST) -> bool:
    """Whether `rgb` is at least `contrast` away from every colour behind it."""
    return all(distance(rgb, other) >= contrast for other in behind)


def opposite(rgb: RGB) -> RGB:
    """Return a dark line colour for light paint, a light one for dark paint."""
    return (20, 20, 20) if 0.3 * rgb[0] + 0.6 * rgb[1] + 0.1 * rgb[2] > 75 else (245, 245, 245)


def _from_box(rng: random.Random, colour: str) -> RGB:
    return _rgb(*(between(rng, low, high) for low, high in PAINTS[colour]))


def _rgb(hue: float, saturation: float, value: float) -> RGB:
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _from_hex(text: str) -> RGB:
    return int(text[:2], 16), int(text[2:4], 16), int(text[4:], 16)
