"""Guidance against two plain forwards."""

from dataclasses import replace

import pytest
import torch

from mmdiff.decoding.cache import CACHES
from mmdiff.decoding.guide import Guided, without_prompt
from mmdiff.errors import SettingError
from tests.decoding.helpers import batch, requests


def unguided(model, canvas):
    """Logits of the masked cells when every prompt id is the mask id and there is no picture."""
    ids = canvas.ids.clone()
    ids[:, : canvas.prompt_length] = model.config.mask_token_id
    canvas = replace(canvas, segment=torch.zeros_like(canvas.segment))
    hidden = model.hidden(canvas, model.get_input_embeddings()(ids))
    return model.head(hidden[canvas.masked])


@torch.inference_mode()
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_guided_logits_are_free_plus_the_scaled_difference(model, scale):
    canvas = batch(model, *requests(model))
    plain = model.score(canvas, canvas.masked)
    free = unguided(model, canvas)
    guided = Guided(CACHES.get("none"), model, canvas, scale).score(canvas, canvas.masked)
    torch.testing.assert_close(guided, free + (1 + scale) * (plain - free))


@torch.inference_mode()
@pytest.mark.parametrize("layout", ["full", "prefix"])
@pytest.mark.parametrize("cache", ["none", "prefix", "suffix"])
def test_the_free_side_is_a_call_without_the_picture(model, cache, layout):
    """The same logits as those of raw ids, mask ids for a prompt, and no pixel values."""
    model.config.attention_layout, model.config.picture_apart = layout, True
    canvas = batch(model, *requests(model))
    assert canvas.features is not None
    assert canvas.segment.any()
    free = Guided(CACHES.get(cache), model, canvas, 1.0).free
    blank = canvas.ids.clone()
    blank[:, : canvas.prompt_length] = model.config.mask_token_id
    plain = model(input_ids=blank, attention_mask=canvas.valid, writable=canvas.block > 0).logits
    now = replace(canvas, ids=blank, segment=torch.zeros_like(canvas.segment))
    got = free.score(now, canvas.masked)
    if cache != "prefix" or layout == "prefix":  # where keeping the prompt's keys is exact
        torch.testing.assert_close(got, plain[canvas.masked])


def test_free_positions_are_those_of_a_text(model):
    """Where a picture's cells count on three axes, the free side does not show its size."""
    canvas = batch(model, *requests(model))
    flat = canvas.position
    canvas.position = torch.stack([flat, flat // 2, flat % 3])
    blank = without_prompt(canvas, model.config.mask_token_id)
    assert torch.equal(blank.position, flat.expand(3, -1, -1))


def test_a_guided_step_costs_two_calls(model):
    ids = torch.tensor([[5, 6, 7]])
    plain = model.generate(ids, max_new_tokens=4, stop="none", accept="schedule")
    guided = model.generate(ids, max_new_tokens=4, stop="none", accept="schedule", cfg_scale=1.0)
    assert plain.nfe.tolist() == [4]
    assert guided.nfe.tolist() == [8]


def test_rows_are_guided_on_their_own(model):
    rows = torch.tensor([[5, 6, 7], [8, 9, 5]])
    settings = {"max_new_tokens": 5, "cfg_scale": 1.5, "stop": "none"}
    both = model.generate(rows, **settings).sequences
    for i in range(2):
        assert torch.equal(model.generate(rows[i : i + 1], **settings).sequences[0], both[i])


def test_a_negative_scale_is_refused(model):
    with pytest.raises(SettingError, match="cfg_scale"):
        model.generate(torch.tensor([[5]]), cfg_scale=-1.0)
