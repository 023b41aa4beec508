"""The tabletop world: endless pictures of a few coloured shapes, with captions and questions.

This is its door; the rooms are `tabletop_spec` (what a scene is), `_sample` (drawing one at
random), `_draw` (pixels), `_text` and `_questions` (words), `_score` (checking answers) and `_sets`
(the fixed test sets). Specification: docs/worlds/tabletop.md.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image

from mmdiff.data.worlds.tabletop_draw import render
from mmdiff.data.worlds.tabletop_questions import KINDS, QA, questions
from mmdiff.data.worlds.tabletop_sample import sample_scene
from mmdiff.data.worlds.tabletop_score import caption_ok, parse_caption, vqa_ok
from mmdiff.data.worlds.tabletop_spec import (
    COLOURS,
    HELD_OUT,
    SHAPES,
    SIZES,
    TEXTURES,
    Obj,
    Scene,
    stream,
)
from mmdiff.data.worlds.tabletop_text import captions

__all__ = [
    "COLOURS",
    "HELD_OUT",
    "KINDS",
    "QA",
    "SHAPES",
    "SIZES",
    "TEXTURES",
    "Obj",
    "Scene",
    "TrainingExample",
    "caption_ok",
    "captions",
    "parse_caption",
    "questions",
    "render",
    "sample_scene",
    "training_example",
    "vqa_ok",
]


BIG_RADIUS, BIG_TRIES = 0.15, 6  # of stage "one"; about one single object in seven is that big


@dataclass(frozen=True)
class TrainingExample:
    """A picture with the texts a model learns from it."""

    image: Image.Image
    caption: str
    qas: list[QA]
    scene: Scene


def training_example(
    index: int, seed: int, questions: int, stage: str = "all"
) -> TrainingExample:
    """Training picture number `index` with a caption and up to `questions` questions.

    `stage` eases a young model in: "one" shows a single, mostly big object, "few" one to three,
    "all" the world as the test sets have it.

    A pure function of its arguments; the longer side of the picture is 96 to 256 pixels, seldom
    more. No test set shares the random stream "tabletop train".
    """
    rng = stream("tabletop train", seed, index)
    scene = _scene(rng, stage)
    caption = captions(scene, rng)
    return TrainingExample(render(scene), caption, _questions(scene, rng, questions), scene)


def _scene(rng: random.Random, stage: str) -> Scene:
    if stage == "all":
        return sample_scene(rng)
    if stage == "few":
        return sample_scene(rng, n=1 + int(rng.random() * 3))
    for _ in range(BIG_TRIES):
        scene = sample_scene(rng, n=1)
        if scene.objects[0].radius >= BIG_RADIUS:
            break
    return scene


_questions = questions  # the argument of training_example has the same name
