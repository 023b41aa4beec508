"""Outlines of the six shapes, in radii around the object's centre (y grows downwards)."""

from __future__ import annotations

import math

from mmdiff.data.worlds.tabletop_spec import Obj

Point = tuple[float, float]

SIDE = 0.86  # half a square's side: its area is then near that of the circle
DEPTH = 0.3  # of a box drawn in perspective


def is_box(obj: Obj, shaded: bool) -> bool:
    """Whether a square is drawn as a box with a top and a side."""
    return shaded and obj.shape == "square" and obj.form < 0.6


def outline(obj: Obj, shaded: bool = False) -> list[Point]:
    """The object's polygon in the picture's directions: stretched by its aspect, then rotated."""
    points = _box() if is_box(obj, shaded) else _OUTLINES[obj.shape](obj.form)
    wide = math.sqrt(obj.aspect)
    turn = math.radians(obj.rotation)
    cos, sin = math.cos(turn), math.sin(turn)
    stretched = [(x * wide, y / wide) for x, y in points]
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in stretched]


def _circle(form: float) -> list[Point]:
    return [(math.cos(a * math.pi / 36), math.sin(a * math.pi / 36)) for a in range(72)]


def _square(form: float) -> list[Point]:
    return [(-SIDE, -SIDE), (SIDE, -SIDE), (SIDE, SIDE), (-SIDE, SIDE)]


def _triangle(form: float) -> list[Point]:
    # Mostly the apex is above the middle; the last quarter of `form` leans towards a right angle.
    lean = 0.0 if form < 0.75 else (form - 0.875) * 7.2
    return [(lean, -1.0), (1.0, 0.78), (-1.0, 0.78)]


def _star(form: float) -> list[Point]:
    inner = 0.36 + 0.14 * form
    radii = [1.08 if corner % 2 == 0 else inner * 1.08 for corner in range(10)]
    return [
        (radius * math.sin(corner * math.pi / 5), -radius * math.cos(corner * math.pi / 5))
        for corner, radius in enumerate(radii)
    ]


def _heart(form: float) -> list[Point]:
    # The usual curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t.
    points = []
    for step in range(48):
        t = step * math.pi / 24
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((16 * math.sin(t) ** 3 / 16.5, -(y + 2.5) / 15.0))
    return points


def _cross(form: float) -> list[Point]:
    arm = 0.24 + 0.16 * form
    shift = 0.22 if form > 0.88 else 0.0  # some have a longer lower arm
    low, high = -arm - shift, arm - shift
    return [
        (-arm, -1), (arm, -1), (arm, low), (1, low), (1, high), (arm, high),
        (arm, 1), (-arm, 1), (-arm, high), (-1, high), (-1, low), (-arm, low),
    ]  # fmt: skip


def _box() -> list[Point]:
    front = SIDE - DEPTH
    return [
        (-SIDE, -front), (-front, -SIDE), (SIDE, -SIDE),
        (SIDE, front), (front, SIDE), (-SIDE, SIDE),
    ]  # fmt: skip


_OUTLINES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
}
