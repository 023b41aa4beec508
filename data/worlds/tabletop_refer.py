"""Words that point at exactly one object of a scene: "the star", "the large red thing"."""

from __future__ import annotations

import random

from mmdiff.data.worlds.tabletop_spec import SYNONYMS, Obj, Scene, pick

MARGIN = 0.08  # least distance, in fractions of the picture, that a question may ask about
_PLACES = {"leftmost": ("x", 1), "rightmost": ("x", -1), "top": ("y", 1), "bottom": ("y", -1)}
_SIDES = {"leftmost": "on the left", "rightmost": "on the right", "top": "at the top",
          "bottom": "at the bottom"}  # fmt: skip

# Which attributes a reference may name; the order of the words is size, texture, colour, shape.
_WAYS = (
    ("shape",),
    ("shape",),
    ("colour",),
    ("colour", "shape"),
    ("colour", "shape"),
    ("size", "shape"),
    ("texture", "shape"),
    ("size", "colour"),
    ("texture", "colour"),
    ("size", "colour", "shape"),
    ("size",),
    ("texture",),
)


def matching(scene: Scene, wanted: dict[str, str]) -> list[Obj]:
    """The objects whose attributes are as `wanted`, such as {"colour": "red"}."""
    return [obj for obj in scene.objects if all(getattr(obj, k) == v for k, v in wanted.items())]


def refer(scene: Scene, obj: Obj, rng: random.Random, hide: str) -> str | None:
    """A noun phrase for `obj` alone that does not tell its `hide`, or None.

    `hide` is an attribute, or "place" for a phrase without "leftmost" and the like.
    """
    phrases = []
    if len(scene.objects) == 1 and hide != "place":
        phrases.append(f"the {thing(rng)}")
    for fields in _WAYS:
        if hide not in fields:
            wanted = {field: getattr(obj, field) for field in fields}
            if len(matching(scene, wanted)) == 1:
                phrases.append(_phrase(rng, wanted))
    place = None if hide == "place" else _place(scene, obj)
    if place:
        noun = thing(rng)
        phrases.append(f"the {place} {noun}")
        if len(scene.objects) == 2:
            phrases.append(f"the {noun} {_SIDES[place]}")
    return pick(rng, phrases) if phrases else None


def _phrase(rng: random.Random, wanted: dict[str, str]) -> str:
    size = wanted.get("size", "")
    if size == "large" and rng.random() < 0.25:
        size = "big"
    noun = shape_word(rng, wanted["shape"]) if "shape" in wanted else thing(rng)
    words = (size, wanted.get("texture", ""), wanted.get("colour", ""), noun)
    return " ".join(("the", *(word for word in words if word)))


def _place(scene: Scene, obj: Obj) -> str | None:
    """The word for an end of the picture that only this object holds, by a clear margin."""
    for word, (axis, sign) in _PLACES.items():
        others = [sign * getattr(other, axis) for other in scene.objects if other is not obj]
        if others and min(others) - sign * getattr(obj, axis) >= MARGIN:
            return word
    return None


def thing(rng: random.Random) -> str:
    """A noun for any object."""
    return pick(rng, ("object", "object", "thing", "shape"))


def shape_word(rng: random.Random, shape: str) -> str:
    """The shape's name, or now and then its everyday synonym."""
    return SYNONYMS.get(shape, shape) if rng.random() < 0.15 else shape
