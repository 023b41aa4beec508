"""What lies behind the objects: paper, wall and table, wood, cloth, gradients and grain.

Every function returns a float32 array (height, width, 3) in 0..255.
"""

from __future__ import annotations

import functools
import math
import random

import numpy as np
from PIL import Image, ImageDraw

from mmdiff.data.worlds.tabletop_spec import RGB, Scene, between, pick

_TILE = 512


@functools.cache
def _tile() -> np.ndarray:
    """Normal noise drawn once: drawing it anew for each picture would take most of its time."""
    return np.random.default_rng(2024).standard_normal((_TILE, _TILE, 3), dtype=np.float32)


def noise(height: int, width: int, offset: int) -> np.ndarray:
    """Independent normal noise (height, width, 3), repeated every 512 pixels."""
    rows = (np.arange(height) + offset) % _TILE
    columns = (np.arange(width) + 7 * offset) % _TILE
    return _tile()[rows[:, None], columns[None, :]]


def _soft_noise(rng: random.Random, height: int, width: int, rows: int, columns: int) -> np.ndarray:
    """Smooth noise (height, width, 1) of variance below 1, with so many rows and columns."""
    top, left = (int(rng.random() * (_TILE - 64)) for _ in range(2))
    coarse = np.ascontiguousarray(_tile()[top : top + rows, left : left + columns, 0])
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth)[..., None]


def background(scene: Scene, rng: random.Random, width: int, height: int) -> np.ndarray:
    """Paint the scene's background and clutter at the given size in pixels."""
    behind = scene.background
    first, second = (
        np.array(behind.first, dtype=np.float32),
        np.array(behind.second, dtype=np.float32),
    )
    canvas = np.empty((height, width, 3), dtype=np.float32)
    canvas[:] = first
    if behind.kind == "two_tone":
        canvas[int(height * behind.level) :] = second
    elif behind.kind == "wood":
        canvas[int(height * behind.level) :] = second
        _grow_wood(canvas[int(height * behind.level) :], rng)
    elif behind.kind == "gradient":
        canvas += _ramp(width, height, behind.level) * (second - first)
    elif behind.kind == "mottled":
        canvas += 7 * _soft_noise(rng, height, width, 12, 12)
    elif behind.kind == "grainy":
        part = 0.5 + 0.22 * _soft_noise(rng, height, width, 5, 5)
        part = part + 0.12 * _soft_noise(rng, height, width, 40, 40)
        canvas += np.clip(part, 0, 1) * (second - first)
    elif behind.kind == "cloth":
        canvas += _weave(width, height, behind.level) * (second - first)
    if scene.look.clutter:
        canvas = _clutter(canvas, rng, scene.look.clutter, behind.first)
    return canvas


def _ramp(width: int, height: int, level: float) -> np.ndarray:
    """From 0 to 1 along the direction of `level` turns."""
    cos, sin = math.cos(2 * math.pi * level), math.sin(2 * math.pi * level)
    across = np.linspace(-0.5, 0.5, width, dtype=np.float32) * cos
    down = np.linspace(-0.5, 0.5, height, dtype=np.float32) * sin
    ramp = (across[None, :] + down[:, None]) / (abs(cos) + abs(sin)) + 0.5
    return ramp[..., None]


def _grow_wood(table: np.ndarray, rng: random.Random) -> None:
    height, width = table.shape[:2]
    if height:
        table *= 1 + 0.05 * _soft_noise(rng, height, width, 30, 3)


def _weave(width: int, height: int, level: float) -> np.ndarray:
    """A faint check: a quarter of the way to the second colour where two bands cross."""
    bands = 5 + int(level * 8)
    across = np.arange(width) * bands * 2 // max(width, height) % 2
    down = np.arange(height) * bands * 2 // max(width, height) % 2
    return (0.12 * (across[None, :] + down[:, None])).astype(np.float32)[..., None]


def _clutter(canvas: np.ndarray, rng: random.Random, count: int, near: RGB) -> np.ndarray:
    """Specks and thin lines, grey and faint: clearly nothing to be described."""
    picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    for _ in range(count):
        shift = pick(rng, (-45, -30, 30, 45))
        level = min(255, max(0, sum(near) // 3 + shift))
        x, y = between(rng, 0, width), between(rng, 0, height)
        if rng.random() < 0.88:
            speck = max(1.0, 0.008 * math.sqrt(width * height))
            draw.ellipse((x, y, x + speck, y + speck), fill=(level,) * 3)
        else:
            end = (x + between(rng, -0.3, 0.3) * width, y + between(rng, -0.3, 0.3) * height)
            draw.line((x, y, *end), fill=(level,) * 3)
    return np.asarray(picture, dtype=np.float32)
