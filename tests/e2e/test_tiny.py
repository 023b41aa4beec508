"""The shipped model: small, loadable strictly, made by its recipe, and looking at the picture."""

import json
from pathlib import Path

import pytest
import torch

import mmdiff
from mmdiff.config import build, read_yaml, to_dict
from mmdiff.eval.tabletop import accuracy, answer_set, caption_set
from mmdiff.loading import resolve
from mmdiff.training.recipe import Recipe

FOLDER = resolve("mmdiff/tiny")
ROOT = Path(mmdiff.__file__).parent.parent


@pytest.fixture(scope="module")
def tiny():
    return mmdiff.load()


def test_size():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) <= 12_000_000


@pytest.mark.parametrize(
    ("name", "file"), [("tiny", "recipe_1.json"), ("tiny_captions", "recipe_2.json")]
)
def test_it_was_made_by_the_shipped_recipes(name, file):
    recipe = to_dict(build(Recipe, read_yaml(ROOT / "configs" / "train" / f"{name}.yaml")))
    made_by = to_dict(build(Recipe, json.loads((FOLDER / file).read_text())))
    assert made_by == recipe


def test_it_looks_at_the_picture(tiny):
    seen = answer_set(tiny, "validation", limit=60)
    blind = answer_set(tiny, "validation", limit=60, blind=True)
    assert accuracy(seen) >= accuracy(blind) + 0.1


def test_captions_come_out_as_sentences(tiny):
    captions = caption_set(tiny, limit=12)
    assert all(c.text.endswith(".") and c.text[0].islower() for c in captions)


@pytest.mark.parametrize("order", ["confidence", "left_to_right"])
def test_caches_agree_on_real_requests(tiny, order):
    picture = ROOT / "mmdiff" / "pictures" / "table.png"
    kept, anew = (tiny.caption(picture, order=order, cache=cache) for cache in ("prefix", "none"))
    assert kept.ids == anew.ids
    assert kept.nfe == anew.nfe


def test_weights_are_finite(tiny):
    assert all(torch.isfinite(p).all() for p in tiny.parameters())
