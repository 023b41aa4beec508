"""Captions and the words questions share.

Every caption names all objects from left to right. Its style shows in the first words and nothing
is random after them, because a masked-diffusion model fills many words at once: two wordings that
part ways in the middle would be mixed up.
"""

from __future__ import annotations

import random
from itertools import pairwise

from mmdiff.data.worlds.tabletop_spec import NUMBERS, SYNONYMS, Obj, Scene, weighted

# How surely one of "above" and "left of" is the natural word: | |dy| - |dx| | in picture fractions.
_DECIDED = 0.05


def captions(scene: Scene, rng: random.Random) -> str:
    """A true caption of the whole scene in one of the styles of docs/worlds/tabletop.md."""
    style = weighted(rng, _styles(scene))
    objects = scene.left_to_right
    if style == "relation":
        return f"in the picture, {_chain(objects)}."
    if style == "detail":
        return f"we see {listed([_detailed(obj) for obj in objects])}."
    if style == "synonym":
        return f"here we have {listed([_named(obj, synonym=True) for obj in objects])}."
    plain = listed([_named(obj) for obj in objects])
    if style == "counted":
        number = NUMBERS[len(objects)]
        return f"there {'is' if number == 'one' else 'are'} {number} {nouns(number)}: {plain}."
    openings = {"list": "", "ordered": "from left to right: ", "shown": "the picture shows "}
    return f"{openings[style]}{plain}."


def _styles(scene: Scene) -> dict[str, float]:
    styles = {"list": 0.4, "shown": 0.1, "counted": 0.15, "detail": 0.15, "synonym": 0.05}
    objects = scene.left_to_right
    if len(objects) > 1:
        styles["ordered"] = 0.1
    pairs = list(pairwise(objects))
    if 2 <= len(objects) <= 4 and all(_is_decided(a, b) for a, b in pairs):
        styles["relation"] = 0.15
    return styles


def _chain(objects: tuple[Obj, ...]) -> str:
    text = _named(objects[0])
    joint = " is "
    for left, right in pairwise(objects):
        text += f"{joint}{relation(left, right)} {_named(right)}"
        joint = ", which is "
    return text


def relation(left: Obj, right: Obj) -> str:
    """The words between two objects, the first of which is farther left."""
    if abs(left.y - right.y) <= abs(left.x - right.x):
        return "to the left of"
    return "above" if left.y < right.y else "below"


def _is_decided(left: Obj, right: Obj) -> bool:
    return abs(abs(left.y - right.y) - abs(left.x - right.x)) >= _DECIDED


def _named(obj: Obj, synonym: bool = False) -> str:
    shape = SYNONYMS.get(obj.shape, obj.shape) if synonym else obj.shape
    return with_article(f"{obj.colour} {shape}")


def _detailed(obj: Obj) -> str:
    texture = "" if obj.texture == "plain" else f"{obj.texture} "
    return with_article(f"{obj.size} {texture}{obj.colour} {obj.shape}")


def with_article(words: str) -> str:
    """Put "a" or "an" before the words."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def listed(items: list[str]) -> str:
    """Join as in: a; a and b; a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def nouns(number: str) -> str:
    """Object or objects, after a number word."""
    return "object" if number == "one" else "objects"


def plural(noun: str) -> str:
    """Several of the last word: stars, crosses, boxes."""
    return f"{noun}es" if noun.endswith(("s", "x")) else f"{noun}s"
