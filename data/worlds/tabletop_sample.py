"""Drawing a scene at random: what is in it, where, and how it looks.

About a third of the scenes are `simple`, like a drawing made by a short program: flat paint, exact
colours, a plain background. The others vary everything that must not change the description.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from mmdiff.data.worlds import tabletop_colours as colours
from mmdiff.data.worlds.tabletop_shapes import outline
from mmdiff.data.worlds.tabletop_spec import (
    COLOURS,
    HELD_OUT,
    LARGE_RADIUS,
    LARGEST_RADIUS,
    RGB,
    SHAPES,
    SMALL_RADIUS,
    TEXTURES,
    Background,
    Look,
    Obj,
    Scene,
    between,
    pick,
    shuffled,
    weighted,
)

TRAIN_SIDES = (96, 256)
SIMPLE = 0.35
APART_X = 0.05  # least distance of two centres along x, so that left to right is never in doubt
OVERLAP = 0.85  # least distance of two centres, in sums of radii
CLEAR = 1.25  # the same where paints are alike
_HOW_MANY = {1: 0.16, 2: 0.2, 3: 0.22, 4: 0.18, 5: 0.13, 6: 0.11}
_HOW_MANY_SIMPLE = {1: 0.4, 2: 0.22, 3: 0.18, 4: 0.1, 5: 0.06, 6: 0.04}


@dataclass(frozen=True)
class _Frame:
    """Width and height in units of sqrt(width * height)."""

    width: float
    height: float


def sample_scene(
    rng: random.Random,
    n: int | None = None,
    allow_held_out: bool = False,
    only_held_out: bool = False,
    sides: tuple[int, int] = TRAIN_SIDES,
) -> Scene:
    """A random scene of `n` objects (1 to 6, drawn when None).

    `allow_held_out` lets the held-out pairs of colour and shape appear as any other pair,
    `only_held_out` puts at least one in. `sides` bounds the longer side in pixels; a scene with
    fine detail gets at least the pixels that show it.
    """
    simple = rng.random() < SIMPLE
    count = n or weighted(rng, _HOW_MANY_SIMPLE if simple else _HOW_MANY)
    aspect = 1.0 if rng.random() < 0.35 else math.exp(between(rng, math.log(0.6), math.log(1.7)))
    frame = _Frame(math.sqrt(aspect), 1 / math.sqrt(aspect))
    look = _look(rng, simple)
    pairs = _pairs(rng, count, allow_held_out)
    if only_held_out:
        pairs[int(rng.random() * count)] = pick(rng, HELD_OUT)
    objects = [_object(rng, pair, simple, look, count) for pair in pairs]
    if count == 1:
        objects = [_alone(rng, objects[0], frame, simple)]
    objects = _placed(rng, objects, frame, look.shaded)
    background = _background(rng, objects, look, simple)
    objects = _outlined(rng, objects, background, look)
    width, height = _pixels(rng, objects, frame, sides)
    return Scene(tuple(objects), background, look, width, height, int(rng.random() * 2**31))


def _pairs(rng: random.Random, count: int, allow_held_out: bool) -> list[tuple[str, str]]:
    """Colours and shapes; often from a few of them only, so that things repeat and are counted."""
    some = shuffled(rng, COLOURS)[: pick(rng, (2, 3, 10, 10))]
    forms = shuffled(rng, SHAPES)[: pick(rng, (2, 3, 6, 6))]
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        pair = (pick(rng, some), pick(rng, forms))
        if pair in HELD_OUT and not allow_held_out:
            pair = (pick(rng, COLOURS), pair[1])
            if pair in HELD_OUT:
                continue
        # Twins make questions about "the red circle" impossible: keep them, but rare.
        if pair in pairs and rng.random() < 0.6:
            pair = (pick(rng, COLOURS), pick(rng, SHAPES))
            if pair in HELD_OUT and not allow_held_out:
                continue
        pairs.append(pair)
    return pairs


def _object(rng: random.Random, pair: tuple[str, str], simple: bool, look: Look, count: int) -> Obj:
    colour, shape = pair
    size = "large" if rng.random() < (0.75, 0.65, 0.6, 0.5, 0.5, 0.5)[count - 1] else "small"
    texture = pick(rng, TEXTURES) if rng.random() < (0.3 if simple else 0.85) else "plain"
    rgb = colours.paint(rng, colour, look.gain, exact=rng.random() < (0.65 if simple else 0.15))
    stretch = 1.4 if shape in ("circle", "square") and rng.random() < 0.2 else 1.15
    regular = rng.random() < (0.7 if simple else 0.2)
    return Obj(
        shape=shape,
        colour=colour,
        size=size,
        texture=texture,
        x=0.5,
        y=0.5,
        radius=between(rng, *(LARGE_RADIUS if size == "large" else SMALL_RADIUS)),
        rotation=0.0 if regular else _rotation(rng, shape),
        aspect=1.0 if regular else between(rng, 1 / stretch, stretch),
        form=between(rng, 0, 1),
        grain=pick(rng, (0.0, 0.25, 0.5, 0.75)) if regular else between(rng, 0, 1),
        rgb=rgb,
        mark_rgb=colours.mark(rng, rgb, colour),
    )


def _rotation(rng: random.Random, shape: str) -> float:
    turn = between(rng, -15, 15)
    if shape == "triangle" and rng.random() < 0.12:
        turn += pick(rng, (90, 180, -90))
    return round(turn, 4)


def _alone(rng: random.Random, obj: Obj, frame: _Frame, simple: bool) -> Obj:
    """One object may fill the picture."""
    if obj.size == "small" or rng.random() < 0.3:
        return obj
    largest = LARGEST_RADIUS * min(frame.width, frame.height)
    return replace(obj, radius=between(rng, LARGE_RADIUS[0], max(LARGE_RADIUS[1], largest)))


def _placed(rng: random.Random, objects: list[Obj], frame: _Frame, shaded: bool) -> list[Obj]:
    """Places everything inside the picture; where there is no room, large objects become small."""
    loose = rng.random() < 0.7  # most scenes have no overlap at all
    for attempt in range(200):
        placed = _try_to_place(rng, objects, frame, shaded, loose and attempt < 12)
        if placed is not None:
            return placed
        large = [i for i, obj in enumerate(objects) if obj.size == "large"]
        if attempt % 4 == 3 and large:
            objects = list(objects)
            index = pick(rng, large)
            small = between(rng, *SMALL_RADIUS)
            objects[index] = replace(objects[index], size="small", radius=small)
    raise AssertionError("six small objects always find room")


def _try_to_place(
    rng: random.Random, objects: list[Obj], frame: _Frame, shaded: bool, loose: bool
) -> list[Obj] | None:
    placed: list[Obj] = []
    centred = len(objects) == 1 and rng.random() < 0.4
    for obj in objects:
        points = outline(obj, shaded)
        border = obj.radius * 0.08 + 0.01
        reach_x = (max(abs(x) for x, _ in points) * obj.radius + border) / frame.width
        reach_y = (max(abs(y) for _, y in points) * obj.radius + border) / frame.height
        if reach_x >= 0.5 or reach_y >= 0.5:
            obj = replace(obj, radius=round(obj.radius * 0.49 / max(reach_x, reach_y), 4))
            reach_x, reach_y = min(reach_x, 0.495), min(reach_y, 0.495)
        for _ in range(25):
            x, y = between(rng, reach_x, 1 - reach_x), between(rng, reach_y, 1 - reach_y)
            moved = replace(obj, x=0.5 if centred else x, y=0.5 if centred else y)
            if all(_fits(moved, other, frame, loose) for other in placed):
                placed.append(moved)
                break
        else:
            return None
    return placed


def _fits(first: Obj, second: Obj, frame: _Frame, loose: bool) -> bool:
    if abs(first.x - second.x) < APART_X:
        return False
    gap = math.hypot((first.x - second.x) * frame.width, (first.y - second.y) * frame.height)
    alike = colours.distance(first.rgb, second.rgb) < 1.3 * colours.CONTRAST
    return gap >= (CLEAR if alike or loose else OVERLAP) * (first.radius + second.radius)


def _look(rng: random.Random, simple: bool) -> Look:
    if simple:
        jpeg = int(between(rng, 60, 95)) if rng.random() < 0.1 else 0
        return Look(False, 1.0, (1.0, 1.0, 1.0), 0.0, 0.0, jpeg, 0.0, 0.0, 0)
    shaded = rng.random() < 0.5
    cast = (between(rng, 0.96, 1.04), between(rng, 0.96, 1.04), between(rng, 0.96, 1.04))
    return Look(
        shaded=shaded,
        light=between(rng, 0.8, 1.15),
        cast=cast,
        noise=between(rng, 1, 11) if rng.random() < 0.4 else 0.0,
        blur=between(rng, 0.002, 0.005) if rng.random() < 0.25 else 0.0,
        jpeg=int(between(rng, 40, 92)) if rng.random() < 0.15 else 0,
        vignette=between(rng, 0.05, 0.25) if shaded and rng.random() < 0.5 else 0.0,
        shadow=between(rng, 0.2, 0.55) if shaded else 0.0,
        clutter=int(between(rng, 2, 18)) if rng.random() < 0.3 else 0,
    )


_KINDS_SIMPLE = {"plain": 0.75, "gradient": 0.1, "grainy": 0.1, "two_tone": 0.05}
_KINDS_FLAT = {"plain": 0.25, "two_tone": 0.25, "gradient": 0.2, "mottled": 0.15, "grainy": 0.15}
_KINDS_SHADED = {"wood": 0.35, "cloth": 0.15, "two_tone": 0.2, "gradient": 0.15, "mottled": 0.15}


def _background(rng: random.Random, objects: list[Obj], look: Look, simple: bool) -> Background:
    kinds = _KINDS_SIMPLE if simple else _KINDS_SHADED if look.shaded else _KINDS_FLAT
    kind = weighted(rng, kinds)
    # White paper stays white even under a white object, which then gets an outline.
    tries = 1 if simple and rng.random() < 0.5 else 8
    for _ in range(tries):
        first = (255, 255, 255) if tries == 1 else _wall(rng)
        second = _wood(rng) if kind == "wood" else _wall(rng)
        level = between(rng, 0.25, 0.75) if kind in ("two_tone", "wood") else between(rng, 0, 1)
        background = Background(kind, first, second, level)
        behind = _behind(background, look)
        if not any(_hidden(obj, behind, look) for obj in objects):
            break
    return background


def _behind(background: Background, look: Look) -> list[RGB]:
    """The background's colours as the light shows them."""
    first, second = (colours.lit(c, look.gain) for c in (background.first, background.second))
    if background.kind in ("plain", "mottled"):
        return [first]
    return [first, colours.mixed(first, second, 0.5), second]


def _hidden(obj: Obj, behind: list[RGB], look: Look) -> bool:
    """Whether the object, or the stripes at its edge, would melt into the background."""
    if not colours.stands_out(colours.lit(obj.rgb, look.gain), behind):
        return True
    marks = colours.lit(obj.mark_rgb, look.gain)
    return obj.texture != "plain" and not colours.stands_out(marks, behind, 55)


def _wall(rng: random.Random) -> RGB:
    draw = rng.random()
    if draw < 0.2:
        return (255, 255, 255)
    if draw < 0.27:
        return (0, 0, 0)
    if draw < 0.4:
        grey = int(between(rng, 60, 240))
        return (grey, grey, grey)
    low, high = pick(rng, ((190, 255), (190, 255), (80, 240), (20, 110)))
    return int(between(rng, low, high)), int(between(rng, low, high)), int(between(rng, low, high))


def _wood(rng: random.Random) -> RGB:
    light = between(rng, 0.75, 1.1)
    return int(200 * light), int(between(rng, 150, 170) * light), int(between(rng, 95, 130) * light)


def _outlined(
    rng: random.Random, objects: list[Obj], background: Background, look: Look
) -> list[Obj]:
    """Outlines as a matter of style, and wherever paint and background are alike."""
    styled = not look.shaded and rng.random() < 0.45
    width = between(rng, 0.04, 0.16)
    line = (0, 0, 0) if rng.random() < 0.7 else (int(between(rng, 0, 90)),) * 3
    own = rng.random() < 0.2  # each object in a dark shade of its own paint
    behind = _behind(background, look)
    out = []
    for obj in objects:
        colour = colours.mixed(obj.rgb, (0, 0, 0), 0.55) if own else line
        hidden = _hidden(obj, behind, look)
        if hidden:
            colour = colours.opposite(obj.rgb)
        if hidden or styled:
            obj = replace(obj, outline=max(width, 0.08) if hidden else width, outline_rgb=colour)
        out.append(obj)
    return out


def _pixels(
    rng: random.Random, objects: list[Obj], frame: _Frame, sides: tuple[int, int]
) -> tuple[int, int]:
    """Width and height: more small pictures than large ones, never too small for the detail."""
    side = sides[0] + (sides[1] - sides[0]) * rng.random() ** 2
    unit = side / max(frame.width, frame.height)
    for obj in objects:
        unit = max(unit, (6.0 if obj.texture == "plain" else 8.0) / obj.radius)
    return round(unit * frame.width), round(unit * frame.height)
