"""The fixed test sets, generated anew from their seeds and pinned by hashes.

`python -m mmdiff.data.worlds.tabletop_sets` prints the hashes, `--write` stores them in
tabletop_hashes.json. A changed hash means a changed benchmark: old results no longer compare.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import PIL

from mmdiff.data.worlds.tabletop_draw import render
from mmdiff.data.worlds.tabletop_questions import QA, questions
from mmdiff.data.worlds.tabletop_sample import sample_scene
from mmdiff.data.worlds.tabletop_spec import HELD_OUT, Scene, stream
from mmdiff.data.worlds.tabletop_text import captions
from mmdiff.errors import SettingError, nearest

HASHES = Path(__file__).with_name("tabletop_hashes.json")
TEST_SIDES = (64, 800)
PICTURES_HASHED = 20


@dataclass(frozen=True)
class Plan:
    """How many scenes a set has, with how many questions; `held_out` puts such a pair in each."""

    scenes: int
    questions: int
    held_out: bool = False


SETS = {
    "vqa": Plan(2000, 3),
    "caption": Plan(1000, 0),
    "vqa_held_out": Plan(1000, 2, held_out=True),
    "validation": Plan(500, 2),
}


@dataclass(frozen=True)
class SetItem:
    """`caption` is one true caption of many; the score checks a caption against the scene."""

    scene: Scene
    caption: str
    qas: tuple[QA, ...]


@functools.cache
def load_set(name: str) -> tuple[SetItem, ...]:
    """The items of a test set, in order; a few seconds for the largest.

    Raises SettingError for a name that is not in `SETS`.
    """
    if name not in SETS:
        raise SettingError(
            f"load_set({name!r}): no such test set; choose one of {', '.join(SETS)}."
            + nearest(name, SETS)
        )
    return tuple(_item(name, index) for index in range(SETS[name].scenes))


def _item(name: str, index: int) -> SetItem:
    """The first scene of the item's stream that gives enough questions of different kinds."""
    plan = SETS[name]
    for attempt in range(100):
        rng = stream("tabletop test", name, index, attempt)
        scene = sample_scene(rng, only_held_out=plan.held_out, sides=TEST_SIDES)
        held_out = [obj for obj in scene.objects if (obj.colour, obj.shape) in HELD_OUT]
        focus = held_out[0] if plan.held_out else None
        qas = questions(scene, rng, plan.questions, focus)
        if len({qa.kind for qa in qas}) == plan.questions:
            return SetItem(scene, captions(scene, rng), tuple(qas))
    raise AssertionError(f"{name} {index}: no scene of 100 gives {plan.questions} kinds")


def set_hash(name: str) -> str:
    """sha256 over one line of canonical JSON per item."""
    digest = hashlib.sha256()
    for item in load_set(name):
        line = json.dumps(asdict(item), sort_keys=True, separators=(",", ":"))
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def pixel_hash(name: str) -> str:
    """sha256 over size and RGB bytes of the first pictures; other Pillow, other hash."""
    digest = hashlib.sha256()
    for item in load_set(name)[:PICTURES_HASHED]:
        picture = render(item.scene)
        digest.update(f"{picture.size}".encode() + picture.tobytes())
    return digest.hexdigest()


def hashes() -> dict[str, dict[str, str]]:
    """What tabletop_hashes.json holds: scenes, pixels, and the versions the pixels belong to."""
    return {
        "scenes": {name: set_hash(name) for name in SETS},
        "pixels": {name: pixel_hash(name) for name in SETS},
        "versions": {"numpy": np.__version__, "pillow": PIL.__version__},
    }


def main() -> None:
    """Print the hashes of all sets, and store them when asked to."""
    parser = argparse.ArgumentParser(description="Hashes of the tabletop test sets.")
    parser.add_argument("--write", action="store_true", help=f"store them in {HASHES.name}")
    text = json.dumps(hashes(), indent=2) + "\n"
    if parser.parse_args().write:
        HASHES.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
