"""The tabletop world: what is drawn, what is said about it, and the pinned test sets."""

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import PIL
import pytest

from mmdiff.data.worlds import tabletop
from mmdiff.data.worlds import tabletop_colours as colours
from mmdiff.data.worlds import tabletop_sets as sets
from mmdiff.data.worlds.tabletop_sample import APART_X
from mmdiff.data.worlds.tabletop_shapes import outline
from mmdiff.data.worlds.tabletop_spec import (
    COLOURS,
    HELD_OUT,
    LARGE_RADIUS,
    MAX_OBJECTS,
    SHAPES,
    SMALL_RADIUS,
    Obj,
    Scene,
    stream,
)
from mmdiff.errors import SettingError

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [tabletop.sample_scene(stream("test", index)) for index in range(500)]


def test_scene_survives_json(scenes):
    for scene in scenes[:100]:
        text = json.dumps(scene.to_dict())
        assert Scene.from_dict(json.loads(text)) == scene


def test_scene_is_unambiguous(scenes):
    for scene in scenes:
        assert 1 <= len(scene.objects) <= MAX_OBJECTS
        assert 0.59 < scene.width / scene.height < 1.71
        xs = [obj.x for obj in scene.left_to_right]
        assert all(right - left >= APART_X - 1e-9 for left, right in pairwise(xs))
        for obj in scene.objects:
            low, high = SMALL_RADIUS if obj.size == "small" else (LARGE_RADIUS[0], 0.7)
            assert low <= obj.radius <= high
            assert colours.is_seen_as(colours.lit(obj.rgb, scene.look.gain), obj.colour)
            assert _is_inside(obj, scene)


def _is_inside(obj: Obj, scene: Scene) -> bool:
    unit = (scene.width * scene.height) ** 0.5
    xs, ys = zip(*outline(obj, scene.look.shaded), strict=True)
    return all(0 <= obj.x * scene.width + x * obj.radius * unit <= scene.width for x in xs) and all(
        0 <= obj.y * scene.height + y * obj.radius * unit <= scene.height for y in ys
    )


def test_held_out_pairs_stay_out(scenes):
    assert len({colour for colour, _ in HELD_OUT}) == len({shape for _, shape in HELD_OUT}) == 6
    words = re.compile("|".join(f"{c} ({s}|{_other(s)})" for c, s in HELD_OUT))
    for index, scene in enumerate(scenes):
        assert not any((obj.colour, obj.shape) in HELD_OUT for obj in scene.objects)
        rng = stream("held out", index)
        texts = [tabletop.captions(scene, rng)]
        texts += [qa.question for qa in tabletop.questions(scene, rng, 4)]
        assert not words.search(" | ".join(texts))
    scene = tabletop.sample_scene(stream("held out"), only_held_out=True)
    assert any((obj.colour, obj.shape) in HELD_OUT for obj in scene.objects)


def _other(shape: str) -> str:
    return {"circle": "ball", "square": "box"}.get(shape, shape)


def test_object_shows_its_colour(scenes):
    """The pixels around the centre of a plain, undisturbed object are its paint."""
    seen = 0
    for scene in scenes:
        obj = scene.objects[0]
        look = scene.look
        if len(scene.objects) > 1 or obj.texture != "plain" or look.shaded or look.jpeg:
            continue
        pixels = np.asarray(tabletop.render(scene), dtype=float)
        y, x = int(obj.y * pixels.shape[0]), int(obj.x * pixels.shape[1])
        middle = pixels[y - 1 : y + 2, x - 1 : x + 2].mean(axis=(0, 1))
        assert np.abs(middle - colours.lit(obj.rgb, look.gain)).max() < 3 + 1.5 * look.noise
        seen += 1
    assert seen > 20


def test_objects_at_the_centre_of_their_place():
    """Where the drawn shape lies agrees with x, y to half a pixel."""
    scene = next(
        scene
        for scene in (tabletop.sample_scene(stream("centre", i), n=1) for i in range(1000))
        if scene.background.kind == "plain"
        and scene.background.first == (255, 255, 255)
        and not scene.look.shaded
        and not scene.look.noise
        and scene.objects[0].colour == "blue"
        and scene.objects[0].shape == "circle"
    )
    pixels = np.asarray(tabletop.render(scene), dtype=float)
    drawn = (pixels.min(axis=2) < 128).nonzero()
    assert abs(drawn[1].mean() + 0.5 - scene.objects[0].x * scene.width) < 0.5
    assert abs(drawn[0].mean() + 0.5 - scene.objects[0].y * scene.height) < 0.5


@pytest.mark.parametrize("size", [16, 64, 1000])
def test_render_sizes(scenes, size):
    for scene in scenes[:6]:
        picture = tabletop.render(scene, size)
        assert picture.mode == "RGB"
        assert max(picture.size) == size
        assert picture.tobytes() == tabletop.render(scene, size).tobytes()


def test_render_refuses_giant_sizes(scenes):
    with pytest.raises(SettingError, match="16 to 3000"):
        tabletop.render(scenes[0], 100_000)


def test_captions_are_true(scenes):
    for index, scene in enumerate(scenes):
        caption = tabletop.captions(scene, stream("caption", index))
        assert re.fullmatch(r"[a-z ,:]+\.", caption)
        assert len(caption.split()) <= 45
        assert tabletop.caption_ok(caption, scene), caption


def test_changed_captions_are_false(scenes):
    for index, scene in enumerate(scenes):
        rng = stream("caption", index)
        caption = tabletop.captions(scene, rng)
        first = scene.left_to_right[0]
        other = next(c for c in COLOURS if c not in {obj.colour for obj in scene.objects})
        recoloured = caption.replace(f"{first.colour} ", f"{other} ", 1)
        assert not tabletop.caption_ok(recoloured, scene), recoloured
        fewer = replace(scene, objects=tuple(o for o in scene.objects if o is not first))
        if fewer.objects:
            assert not tabletop.caption_ok(tabletop.captions(fewer, rng), scene)
            assert not tabletop.caption_ok(caption, fewer)


def test_caption_details_are_checked():
    scene = tabletop.sample_scene(stream("details"), n=2)
    left, right = scene.left_to_right
    a, b = f"a {left.colour} {left.shape}", f"a {right.colour} {right.shape}"
    higher, lower = (a, b) if left.y < right.y else (b, a)
    for true in (
        f"{b}, {a}.",
        f"from left to right: {a} and {b}.",
        f"there are two objects: {a} and {b}.",
        f"{a} is to the left of {b}.",
        f"{higher} is above {lower}",
        f"we see a {left.size} {left.texture} {left.colour} {left.shape} and {b}.",
    ):
        assert tabletop.caption_ok(true, scene), true
    for false in (
        "",
        a,
        f"{a} and {b} and {b}.",
        f"{a} and {b} on a table.",
        f"from left to right: {b} and {a}.",
        f"there are three objects: {a} and {b}.",
        f"{b} is to the left of {a}.",
        f"{lower} is above {higher}",
        f"a {'small' if left.size == 'large' else 'large'} {left.colour} {left.shape} and {b}.",
    ):
        assert not tabletop.caption_ok(false, scene), false


def test_questions_are_well_formed_and_balanced(scenes):
    answers: dict[str, Counter] = {kind: Counter() for kind in tabletop.KINDS}
    for index, scene in enumerate(scenes):
        qas = tabletop.questions(scene, stream("question", index), 3)
        assert len(qas) == 3
        assert len({qa.question for qa in qas}) == 3
        for qa in qas:
            assert re.fullmatch(r"[a-z ,]+[.?]?", qa.question)
            assert re.fullmatch(r"[a-z]+( [a-z]+)?", qa.answer)
            answers[qa.kind][qa.answer] += 1
    assert all(answers.values())
    for kind in ("existence", "comparison"):
        share = answers[kind]["yes"] / sum(answers[kind].values())
        assert 0.4 < share < 0.6, kind
    assert set(answers["shape"]) >= set(SHAPES)
    assert set(answers["colour"]) >= set(COLOURS)


def test_answers_agree_with_an_independent_reading(scenes):
    """Counting and plain existence questions, answered again from their words."""
    checked = 0
    for index, scene in enumerate(scenes):
        names = [f"{obj.colour} {obj.shape}" for obj in scene.objects]
        for qa in tabletop.questions(scene, stream("again", index), 7):
            counted = re.search(rf"(?:many|the|of) ({'|'.join(SHAPES)})e?s\b", qa.question)
            if qa.kind == "count" and counted:
                number = sum(name.endswith(counted[1]) for name in names)
                assert tabletop.vqa_ok(str(number), qa.answer), (qa, names)
                checked += 1
            asked = re.search(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b", qa.question)
            if qa.kind == "existence" and asked:
                assert (asked[0] in names) == (qa.answer == "yes"), (qa, names)
                checked += 1
    assert checked > 200


def test_vqa_ok_forgives_case_punctuation_and_digits_only():
    assert tabletop.vqa_ok("Three.", "three")
    assert tabletop.vqa_ok(" 3", "three")
    assert not tabletop.vqa_ok("", "three")
    assert not tabletop.vqa_ok("three stars", "three")
    assert not tabletop.vqa_ok("no", "yes")


def test_training_example_is_a_pure_function():
    first, again = (tabletop.training_example(7, seed=1, questions=3) for _ in range(2))
    assert first.image.tobytes() == again.image.tobytes()
    assert (first.caption, first.qas, first.scene) == (again.caption, again.qas, again.scene)
    assert tabletop.training_example(7, seed=2, questions=3).scene != first.scene
    assert tabletop.training_example(8, seed=1, questions=3).scene != first.scene


@pytest.mark.parametrize("name", sets.SETS)
def test_set_is_pinned(name):
    recorded = json.loads(sets.HASHES.read_text())
    plan = sets.SETS[name]
    items = sets.load_set(name)
    assert len(items) == plan.scenes
    assert all(len({qa.kind for qa in item.qas}) == plan.questions for item in items)
    assert sets.set_hash(name) == recorded["scenes"][name]
    if recorded["versions"] == {"numpy": np.__version__, "pillow": PIL.__version__}:
        assert sets.pixel_hash(name) == recorded["pixels"][name]


def test_held_out_set_holds_what_it_says():
    for item in sets.load_set("vqa_held_out"):
        assert any((obj.colour, obj.shape) in HELD_OUT for obj in item.scene.objects)


def test_unknown_set_is_refused():
    with pytest.raises(SettingError, match="vqa"):
        sets.load_set("vqaa")
