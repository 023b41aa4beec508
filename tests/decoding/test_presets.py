"""Presets: every shipped recipe decodes, explicit settings win, a recipe is whole."""

import dataclasses

import pytest
import torch
from PIL import Image

import mmdiff
from mmdiff.config import preset, shipped
from mmdiff.decoding.loop import decode
from mmdiff.decoding.settings import REQUEST, Decoding, make_decoding
from mmdiff.errors import SettingError
from mmdiff.heads.base import HEADS
from mmdiff.heads.run import compose_canvas

PRESETS = sorted(shipped("decode"))
CELLS = 10
GIVEN = (2, 7)  # cells of the answer that are given


@pytest.fixture(scope="module")
def tiny():
    return mmdiff.load()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_fills_a_caption(tiny, name):
    settings = make_decoding({"max_new_tokens": CELLS}, {"preset": name, "seed": 3})
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    head = HEADS.get("caption")()
    if settings.length.startswith("grow"):
        settings = dataclasses.replace(settings, length="fixed")  # growing takes no given cells
    examples = [head.compose(tiny.processor, [picture], None) for picture in pictures]
    canvas = compose_canvas(tiny, tiny.processor, examples, CELLS)
    given = [canvas.prompt_length + cell for cell in GIVEN]
    canvas.ids[:, given], canvas.masked[:, given], canvas.writable[:, given] = 40, False, False
    prompt = canvas.ids[:, : canvas.prompt_length].clone()
    filled = decode(tiny, canvas, settings, tiny.processor.end_id)
    ids = filled.canvas.ids
    assert torch.equal(ids[:, : canvas.prompt_length], prompt)
    assert (ids[:, given] == 40).all()
    assert not filled.canvas.masked.any()
    assert (filled.nfe > 0).all()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_the_rule_and_its_source(name):
    written = preset("decode", name)
    assert "accept" in written
    assert not set(written) & {*REQUEST, "compat"}
    first = shipped("decode")[name].read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ") and "(" in first


def test_presets_are_different_recipes():
    assert len({make_decoding({"preset": name}) for name in PRESETS}) == len(PRESETS)


def test_settings_beside_a_preset_win():
    made = make_decoding({"preset": "fast_dllm", "threshold": 0.5, "cache": "none"})
    assert (made.accept, made.threshold, made.cache) == ("threshold", 0.5, "none")
    assert make_decoding({"preset": "llada", "accept": "factor:value=2"}).factor == 2


def test_a_preset_takes_the_place_of_earlier_rules_but_not_of_the_request():
    checkpoint = {"order": "left_to_right", "accept": "threshold", "stop_ids": [7]}
    made = make_decoding({"max_new_tokens": 64}, checkpoint, {"preset": "eb_sampler"})
    own = {"accept": "entropy_bound", "order": "entropy", "entropy_bound": 0.1}
    assert made == Decoding(max_new_tokens=64, stop_ids=(7,), **own)
    later = make_decoding({"preset": "eb_sampler"}, {"entropy_bound": 0.2})
    assert (later.accept, later.entropy_bound) == ("entropy_bound", 0.2)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(SettingError, match=r"preset 'fast_dlm' is unknown.*Did you mean fast_dllm"):
        make_decoding({"preset": "fast_dlm"})


def test_a_preset_by_name_in_python(tiny):
    picture = Image.new("RGB", (64, 64), "red")
    named = tiny.caption(picture, preset="fast_dllm", max_new_tokens=CELLS)
    spelled = tiny.caption(picture, **preset("decode", "fast_dllm"), max_new_tokens=CELLS)
    assert (named.text, named.nfe) == (spelled.text, spelled.nfe)
    with pytest.raises(SettingError, match=r"Known: .*fast_dllm"):
        tiny.caption(picture, preset="none at all")
