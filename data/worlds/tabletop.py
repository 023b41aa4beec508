"""The tabletop world: endless pictures of a few coloured shapes, with captions and questions.

This is its door; the rooms are `tabletop_spec` (what a scene is), `_sample` (drawing one at
random), `_draw` (pixels), `_text` and `_questions` (words), `_score` (checking answers) and `_sets`
(the fixed test sets). Specification: docs/worlds/tabletop.md.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class TrainingExample:
    """A picture with the texts a model learns from it."""

    image: Image.Image
    caption: str
    qas: list[QA]
    scene: Scene


def training_example(index: int, seed: int, questions: int) -> TrainingExample:
    """Training picture number `index` with a caption and up to `questions` questions.

    A pure function of its arguments; the longer side of the picture is 96 to 256 pixels, seldom
    more. No test set shares the random stream "tabletop train".
    """
    rng = stream("tabletop train", seed, index)
    scene = sample_scene(rng)
    caption = captions(scene, rng)
    return TrainingExample(render(scene), caption, _questions(scene, rng, questions), scene)


_questions = questions  # the argument of training_example has the same name
