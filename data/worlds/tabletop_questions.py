"""Questions about a scene with one- or two-word answers that the picture alone decides.

The wanted answer is drawn first and a question that has it is looked for, so that the wording of a
question says as little as possible about its answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from mmdiff.data.worlds.tabletop_refer import MARGIN, matching, refer, shape_word, thing
from mmdiff.data.worlds.tabletop_spec import (
    COLOURS,
    HELD_OUT,
    NUMBERS,
    SHAPES,
    SIZES,
    TEXTURES,
    Obj,
    Scene,
    pick,
    shuffled,
    weighted,
)
from mmdiff.data.worlds.tabletop_text import plural, with_article

KINDS = ("count", "colour", "shape", "existence", "comparison", "relation", "attribute")


@dataclass(frozen=True)
class QA:
    """A question of one of the `KINDS` with its only right answer."""

    kind: str
    question: str
    answer: str


# A maker returns question and answer, or None where the scene gives no such question. `focus` is
# the object the answer must be about.
Maker = Callable[[Scene, random.Random, Obj | None], tuple[str, str] | None]


def questions(
    scene: Scene,
    rng: random.Random,
    k: int,
    focus: Obj | None = None,
    kinds: tuple[str, ...] = KINDS,
) -> list[QA]:
    """Up to `k` different questions, of different kinds as far as there are enough kinds.

    With `focus` every answer is about that object (kinds count and comparison then do not apply).
    """
    if focus is not None:
        kinds = tuple(kind for kind in kinds if kind not in ("count", "comparison"))
    found: list[QA] = []
    for _ in range(1 + k):
        for kind in shuffled(rng, kinds):
            made = _MAKERS[kind](scene, rng, focus)
            if made is None or len(found) >= k:
                continue
            question = _worded(rng, made[0])
            if all(question != other.question for other in found):
                found.append(QA(kind, question, made[1]))
        if len(found) >= k:
            break
    return found


def _worded(rng: random.Random, question: str) -> str:
    """British or American spelling; one question in seven lacks its mark."""
    if rng.random() < 0.5:
        question = question.replace("colour", "color")
    return question[:-1] if rng.random() < 0.15 else question


def _yes(value: bool) -> str:
    return "yes" if value else "no"


# Counting


_COUNT = (
    "how many {} are there?",
    "how many {}?",
    "how many {} are in the picture?",
    "how many {} do you see?",
    "how many {} can you see?",
    "count the {}.",
    "what is the number of {}?",
)


def _count(scene: Scene, rng: random.Random, focus: Obj | None) -> tuple[str, str]:
    field = weighted(rng, {"all": 0.3, "colour": 0.3, "shape": 0.3, "size": 0.05, "texture": 0.05})
    if field == "all":
        number, what = len(scene.objects), plural(thing(rng))
        return pick(rng, _COUNT).format(what), NUMBERS[number]
    values = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "texture": TEXTURES}[field]
    by_count: dict[int, list[str]] = {}
    for value in values:
        by_count.setdefault(len(matching(scene, {field: value})), []).append(value)
    # Most colours are absent from most scenes: the count is drawn first, the value after.
    weights = {0: 0.5, 1: 0.6, 2: 1.2}
    number = weighted(rng, {count: weights.get(count, 2.0) for count in by_count})
    value = pick(rng, by_count[number])
    what = plural(shape_word(rng, value)) if field == "shape" else f"{value} {plural(thing(rng))}"
    return pick(rng, _COUNT).format(what), NUMBERS[number]


# One object: its colour, its shape, its size and texture


_COLOUR = (
    "what colour is {}?",
    "what is the colour of {}?",
    "which colour is {}?",
    "which colour does {} have?",
    "tell me the colour of {}.",
)
_SHAPE = (
    "what shape is {}?",
    "what is {}?",
    "what is the shape of {}?",
    "which shape is {}?",
    "what kind of shape is {}?",
)
_WHAT = ("what is in the picture?", "what do you see?", "what is this?", "what is there?")
_SIZE = ("is {} large or small?", "is {} small or large?", "what size is {}?", "how big is {}?",
         "is {} big or small?")  # fmt: skip
_TEXTURE = (
    "what texture does {} have?",
    "what is the texture of {}?",
    "what pattern does {} have?",
    "is {} plain, striped or dotted?",
)


def _asked(
    scene: Scene, rng: random.Random, focus: Obj | None, hide: str
) -> tuple[Obj, str] | None:
    """An object that can be pointed at without its `hide`, and the words that do it."""
    for obj in [focus] if focus else shuffled(rng, scene.objects):
        words = refer(scene, obj, rng, hide)
        if words:
            return obj, words
    return None


def _colour(scene: Scene, rng: random.Random, focus: Obj | None) -> tuple[str, str] | None:
    asked = _asked(scene, rng, focus, "colour")
    if asked is None:
        return None
    obj, words = asked
    if rng.random() < 0.75:
        return pick(rng, _COLOUR).format(words), obj.colour
    wrong = _wrong(
        scene, rng, "colour", [c for c in COLOURS if (c, obj.shape) not in HELD_OUT], obj
    )
    say_yes = rng.random() < 0.5
    return f"is {words} {obj.colour if say_yes else wrong}?", _yes(say_yes)


def _shape(scene: Scene, rng: random.Random, focus: Obj | None) -> tuple[str, str] | None:
    if len(scene.objects) == 1 and rng.random() < 0.2:
        only = scene.objects[0]
        return pick(rng, _WHAT), f"{only.colour} {only.shape}"
    asked = _asked(scene, rng, focus, "shape")
    if asked is None:
        return None
    obj, words = asked
    if rng.random() < 0.8:
        return pick(rng, _SHAPE).format(words), obj.shape
    wrong = _wrong(scene, rng, "shape", [s for s in SHAPES if (obj.colour, s) not in HELD_OUT], obj)
    say_yes = rng.random() < 0.5
    noun = shape_word(rng, obj.shape if say_yes else wrong)
    return f"is {words} {with_article(noun)}?", _yes(say_yes)


def _wrong(scene: Scene, rng: random.Random, field: str, values: list[str], obj: Obj) -> str:
    """A value the object does not have, preferably one that another object has."""
    values = [value for value in values if value != getattr(obj, field)]
    near = [value for value in values if matching(scene, {field: value})]
    return pick(rng, near if near and rng.random() < 0.6 else values)


def _attribute(scene: Scene, rng: random.Random, focus: Obj | None) -> tuple[str, str] | None:
    field = "size" if rng.random() < 0.45 else "texture"
    whether = rng.random() < (0.25 if field == "size" else 0.5)
    say_yes = rng.random() < 0.5
    for wanted in shuffled(rng, SIZES if field == "size" else TEXTURES):
        for obj in [focus] if focus else shuffled(rng, scene.objects):
            value = getattr(obj, field)
            words = refer(scene, obj, rng, field)
            if not words or (value == wanted) != (say_yes or not whether):
                continue
            if not whether:
                return pick(rng, _SIZE if field == "size" else _TEXTURE).format(words), value
            spoken = "big" if wanted == "large" and rng.random() < 0.3 else wanted
            return f"is {words} {spoken}?", _yes(say_yes)
    return None


# Is there one?


_EXISTS = (
    "is there {}?",
    "is there {} in the picture?",
    "do you see {}?",
    "can you see {}?",
    "does the picture show {}?",
    "does the picture contain {}?",
)


def _existence(scene: Scene, rng: random.Random, focus: Obj | None) -> tuple[str, str]:
    say_yes = rng.random() < 0.5
    how = weighted(rng, {"pair": 0.6, "colour": 0.2, "shape": 0.2})
    if say_yes:
        obj = focus or pick(rng, scene.objects)
        colour, shape = obj.colour, obj.shape
    else:
        colour, shape, how = _absent(scene, rng, how, focus)
    noun = thing(rng) if how == "colour" else shape_word(rng, shape)
    words = noun if how == "shape" else f"{colour} {noun}"
    if rng.random() < 0.15:
        return f"are there any {plural(words)}?", _yes(say_yes)
    return pick(rng, _EXISTS).format(with_article(words)), _yes(say_yes)


def _absent(scene: Scene, rng: random.Random, how: str, focus: Obj | None) -> tuple[str, str, str]:
    """A colour and shape that are not there together, preferably both there apart.

    Held-out pairs are never asked for: in training the answer would always be no.
    """
    colours, shapes = ({getattr(obj, f) for obj in scene.objects} for f in ("colour", "shape"))
    absent = [c for c in COLOURS if c not in colours], [s for s in SHAPES if s not in shapes]
    if how == "colour" and focus is None:
        return pick(rng, absent[0]), "", how
    if how == "shape" and focus is None and absent[1]:
        return "", pick(rng, absent[1]), how
    present = {(obj.colour, obj.shape) for obj in scene.objects} | set(HELD_OUT)
    pairs = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in present]
    both = [pair for pair in pairs if pair[0] in colours and pair[1] in shapes]
    one = [pair for pair in pairs if pair[0] in colours or pair[1] in shapes]
    if focus is not None:
        one = [p for p in one if p[0] == focus.colour or p[1] == focus.shape]
        both = [p for p in both if p in one]
    colour, shape = pick(rng, both if both and rng.random() < 0.7 else one)
    return colour, shape, "pair"


# Two groups, two objects


_MORE = ("are there more {a} than {b}?", "do you see more {a} than {b}?")
_FEWER = ("are there fewer {a} than {b}?", "are there less {a} than {b}?")
_EQUAL = (
    "are there as many {a} as {b}?",
    "is the number of {a} the same as the number of {b}?",
    "are there equally many {a} and {b}?",
)


def _comparison(scene: Scene, rng: random.Random, focus: Obj | None) -> tuple[str, str] | None:
    if rng.random() < 0.4:
        made = _compared_sizes(scene, rng)
        if made:
            return made
    say_yes = rng.random() < 0.5
    field, values = ("colour", COLOURS) if rng.random() < 0.4 else ("shape", SHAPES)
    counts = {value: len(matching(scene, {field: value})) for value in values}
    test = pick(rng, ("more", "fewer", "equal"))
    pairs = [(a, b) for a in values for b in values if a != b and counts[a] + counts[b] > 0]
    true = {"more": lambda a, b: a > b, "fewer": lambda a, b: a < b, "equal": lambda a, b: a == b}
    fitting = [p for p in pairs if true[test](counts[p[0]], counts[p[1]]) == say_yes]
    if not fitting:
        return None
    both = [p for p in fitting if counts[p[0]] and counts[p[1]]]
    first, second = pick(rng, both if both and rng.random() < 0.8 else fitting)
    noun = plural(thing(rng))
    a, b = (plural(v) if field == "shape" else f"{v} {noun}" for v in (first, second))
    templates = {"more": _MORE, "fewer": _FEWER, "equal": _EQUAL}[test]
    return pick(rng, templates).format(a=a, b=b), _yes(say_yes)


def _compared_sizes(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    for first in shuffled(rng, scene.objects):
        for second in shuffled(rng, scene.objects):
            if first.size == second.size:
                continue
            a, b = refer(scene, first, rng, "size"), refer(scene, second, rng, "size")
            if not (a and b):
                continue
            word = pick(rng, ("larger", "bigger", "smaller"))
            return f"is {a} {word} than {b}?", _yes((first.size == "small") == (word == "smaller"))
    return None


# Spoken relation -> axis, and whether the first object has the smaller coordinate.
_RELATIONS = {
    "left of": ("x", True),
    "to the left of": ("x", True),
    "on the left of": ("x", True),
    "right of": ("x", False),
    "to the right of": ("x", False),
    "above": ("y", True),
    "higher than": ("y", True),
    "below": ("y", False),
    "under": ("y", False),
    "lower than": ("y", False),
}
_WHICH = {
    "higher": ("y", True),
    "lower": ("y", False),
    "farther left": ("x", True),
    "farther right": ("x", False),
}


def _relation(scene: Scene, rng: random.Random, focus: Obj | None) -> tuple[str, str] | None:
    for first in [focus] if focus else shuffled(rng, scene.objects):
        for second in shuffled(rng, scene.objects):
            if second is first:
                continue
            which = rng.random() < 0.3
            made = (_which if which else _whether)(scene, rng, first, second)
            if made:
                return made
    return None


def _whether(scene: Scene, rng: random.Random, first: Obj, second: Obj) -> tuple[str, str] | None:
    axis = "x" if rng.random() < 0.5 else "y"
    step = getattr(second, axis) - getattr(first, axis)
    a, b = (refer(scene, obj, rng, "place") for obj in (first, second))
    if abs(step) < MARGIN or not (a and b):
        return None
    say_yes = rng.random() < 0.5
    said = {word: (step > 0) == less for word, (on, less) in _RELATIONS.items() if on == axis}
    fitting = [word for word, true in said.items() if true == say_yes]
    return f"is {a} {pick(rng, fitting)} {b}?", _yes(say_yes)


def _which(scene: Scene, rng: random.Random, first: Obj, second: Obj) -> tuple[str, str] | None:
    if any(len(matching(scene, {"shape": obj.shape})) > 1 for obj in (first, second)):
        return None
    word = pick(rng, tuple(_WHICH))
    axis, less = _WHICH[word]
    step = getattr(second, axis) - getattr(first, axis)
    if abs(step) < MARGIN:
        return None
    answer = first if (step > 0) == less else second
    a, b = (f"the {obj.shape}" for obj in shuffled(rng, (first, second)))
    return f"which is {word}, {a} or {b}?", answer.shape


_MAKERS: dict[str, Maker] = {
    "count": _count,
    "colour": _colour,
    "shape": _shape,
    "existence": _existence,
    "comparison": _comparison,
    "relation": _relation,
    "attribute": _attribute,
}
