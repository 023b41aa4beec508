"""Scoring: reading a caption back into statements and checking each against the scene."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmdiff.data.worlds.tabletop_spec import (
    COLOURS,
    NUMBERS,
    SHAPES,
    SIZES,
    SYNONYMS,
    TEXTURES,
    Obj,
    Scene,
)


@dataclass(frozen=True)
class Stated:
    """One object a caption states; None where it says nothing."""

    colour: str
    shape: str
    size: str | None = None
    texture: str | None = None


@dataclass(frozen=True)
class Statements:
    """All a caption states. `relations` holds (first, word, second) with indices of `objects`."""

    objects: tuple[Stated, ...]
    count: int | None
    ordered: bool
    relations: tuple[tuple[int, str, int], ...]


_CANONICAL = {synonym: shape for shape, synonym in SYNONYMS.items()}
_OBJECT = re.compile(
    rf"(?:(?:an?|the|one) )?(?:(?P<size>{'|'.join(SIZES)}) )?"
    rf"(?:(?P<texture>{'|'.join(TEXTURES)}) )?"
    rf"(?P<colour>{'|'.join(COLOURS)}) (?P<shape>{'|'.join((*SHAPES, *_CANONICAL))})(?![a-z])"
)
_OPENING = re.compile(
    r"(?:(?P<ordered>from left to right: ?)"
    rf"|there (?:is|are) (?P<count>{'|'.join(NUMBERS)}) objects?: ?"
    r"|the picture shows |we see |here we have |in the picture, )?"
)
_RELATION = re.compile(r"(?:, which)? is (to the left of|to the right of|above|below) ")
_JOINT = re.compile(r", and |, | and ")


def parse_caption(text: str) -> Statements | None:
    """What a caption states, or None when any of its words is not understood."""
    text = " ".join(text.lower().split()).removesuffix(".")
    opening = _OPENING.match(text)
    assert opening is not None  # every part of the pattern is optional
    place = opening.end()
    objects: list[Stated] = []
    relations: list[tuple[int, str, int]] = []
    while True:
        found = _OBJECT.match(text, place)
        if found is None:
            return None
        objects.append(_stated(found))
        place = found.end()
        if place == len(text):
            break
        relation, joint = _RELATION.match(text, place), _JOINT.match(text, place)
        if relation:
            relations.append((len(objects) - 1, relation[1], len(objects)))
            place = relation.end()
        elif joint:
            place = joint.end()
        else:
            return None
    count = NUMBERS.index(opening["count"]) if opening["count"] else None
    return Statements(tuple(objects), count, bool(opening["ordered"]), tuple(relations))


def _stated(found: re.Match[str]) -> Stated:
    shape = _CANONICAL.get(found["shape"], found["shape"])
    return Stated(found["colour"], shape, found["size"], found["texture"])


def caption_ok(text: str, scene: Scene) -> bool:
    """Whether everything stated is true and every object of the scene is stated exactly once."""
    said = parse_caption(text)
    if said is None or len(said.objects) != len(scene.objects):
        return False
    if said.count is not None and said.count != len(scene.objects):
        return False
    return _can_match(said, scene, ())


def _can_match(said: Statements, scene: Scene, chosen: tuple[Obj, ...]) -> bool:
    """Whether the remaining stated objects can be given to the scene's unused ones."""
    index = len(chosen)
    if index == len(said.objects):
        return True
    for obj in scene.objects:
        if any(obj is used for used in chosen) or not _is_true(said.objects[index], obj):
            continue
        if said.ordered and chosen and chosen[-1].x > obj.x:
            continue
        before = [r for r in said.relations if r[2] == index]
        if all(_holds(chosen[first], word, obj) for first, word, _ in before) and _can_match(
            said, scene, (*chosen, obj)
        ):
            return True
    return False


def _is_true(stated: Stated, obj: Obj) -> bool:
    return (
        (stated.colour, stated.shape) == (obj.colour, obj.shape)
        and stated.size in (None, obj.size)
        and stated.texture in (None, obj.texture)
    )


def _holds(first: Obj, word: str, second: Obj) -> bool:
    return {
        "to the left of": first.x < second.x,
        "to the right of": first.x > second.x,
        "above": first.y < second.y,
        "below": first.y > second.y,
    }[word]


def vqa_ok(predicted: str, answer: str) -> bool:
    """Exact match after lower-casing, dropping punctuation and spelling digits out."""
    return _plain(predicted) == _plain(answer)


def _plain(text: str) -> str:
    words = re.sub(r"[^a-z0-9 ]", " ", text.lower()).split()
    numbers = dict(zip("0123456", NUMBERS, strict=True))
    return " ".join(numbers.get(word, word) for word in words)
