"""A larger rotary base: the published factors, the frequencies, and what a decode makes of them."""

import math

import pytest
import torch

import mmdiff
from mmdiff.decoding.rope import inverse_frequencies, longest, ntk_factor, scaled
from mmdiff.decoding.settings import make_decoding
from mmdiff.errors import InputError, SettingError
from tests.decoding.helpers import answers, batch, fill, requests
from tests.decoding.plain_layers import PlainLayers, said


@pytest.mark.parametrize(
    ("base", "trained", "wanted", "factor"),
    [
        (5e5, 4096, 8192, 4),  # LLaDA
        (5e5, 4096, 16384, 14),
        (5e5, 4096, 24576, 31),
        (1e6, 2048, 4096, 5),  # Dream
        (5e5, 8192, 16384, 4),  # LLaMA3
        (5e5, 8192, 32768, 13),
        (5e5, 4096, 4096, 1),
        (5e5, 4096, 100, 1),
    ],
)
def test_published_factors(base, trained, wanted, factor):
    assert ntk_factor(base, 128, trained, wanted) == factor


@pytest.mark.parametrize("depth", [16, 64, 128])
def test_frequencies_are_the_formula_in_float64(depth):
    made = inverse_frequencies(5e5 * 14, depth)
    expected = [math.pow(5e5 * 14, -2 * i / depth) for i in range(depth // 2)]
    assert made.dtype == torch.float64
    assert made.tolist() == pytest.approx(expected, rel=1e-15)


def test_the_backbone_is_scaled_for_the_time_being(model):
    backbone = model.backbone
    before, base = backbone.rotary_emb.inv_freq, backbone.config.rope_parameters["rope_theta"]
    depth = 2 * len(before)
    for rule, factor in (
        (2.5, 2.5),
        ("ntk:length=4096", ntk_factor(base, depth, 256, 4096)),
        ("ntk:length=4096,trained=64", ntk_factor(base, depth, 64, 4096)),
    ):
        with scaled(model, rule):
            expected = inverse_frequencies(base * factor, depth).to(before)
            assert torch.equal(backbone.rotary_emb.inv_freq, expected)
        assert backbone.rotary_emb.inv_freq is before
    with pytest.raises(SettingError):  # from inside
        fill(model, requests(model)[0], rope_scale=2, accept="policy")
    assert backbone.rotary_emb.inv_freq is before


@torch.inference_mode()
def test_decoding_with_a_scale_is_decoding_with_that_base(model):
    """One call, all cells at once, with layers written out."""
    model.config.attention_layout, model.config.picture_apart = "full", False
    row = requests(model)[0]
    filled = fill(model, row, steps=1, rope_scale=50)
    view = batch(model, row)
    theta = 50 * model.backbone.config.rope_parameters["rope_theta"]
    hidden = PlainLayers(model, view, theta).run(model.embed(view)[0], list(range(view.shape[1])))
    assert answers(filled)[0] == said(model, hidden)[0][view.prompt_length :]
    assert answers(filled) != answers(fill(model, row, steps=1))


def test_more_cells_than_the_model_holds_need_a_scale():
    model = mmdiff.load()
    limit = model.backbone.config.max_position_embeddings
    messages = [{"role": "user", "content": "is it red? " * 300}]
    for scale, most in ((1, limit), (f"ntk:length={limit + 1}", limit + 1)):
        with pytest.raises(InputError, match=f"this model holds {most}"):
            model.chat(messages, max_new_tokens=2, rope_scale=scale)
    assert model.chat(messages, max_new_tokens=2, rope_scale=f"ntk:length={8 * limit}").nfe > 0
    config = model.backbone.config
    assert [longest(config, r) for r in (1, 4.0, "ntk:length=99")] == [limit, None, 99]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (0, "must be finite and above 0"),
        ("ntk", "use a number, or ntk:length=N"),
        ("yarn:length=9", "use a number, or ntk:length=N"),
        ("ntk:length=9,base=3", "no option 'base'"),
        ("ntk:length=2", "length=2 must be a whole number, at least 7"),
    ],
)
def test_bad_scales_are_refused(model, rule, words):
    with pytest.raises(SettingError, match=words):
        fill(model, requests(model)[0], rope_scale=rule)


def test_another_rope_is_refused(model):
    rotary, before = model.backbone.rotary_emb, model.backbone.rotary_emb.inv_freq
    rotary.inv_freq = before / 8  # linear scaling
    try:
        with pytest.raises(SettingError, match="llama backbone does not rotate by one base"):
            fill(model, requests(model)[0], rope_scale=2)
    finally:
        rotary.inv_freq = before


def test_the_setting_is_a_number_or_a_rule():
    assert make_decoding({"rope_scale": 4}).rope_scale == 4.0
    assert make_decoding({"rope_scale": "ntk:length=8192"}).rope_scale == "ntk:length=8192"
    with pytest.raises(SettingError, match="rope_scale must be"):
        make_decoding({"rope_scale": None})
