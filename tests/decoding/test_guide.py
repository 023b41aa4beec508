"""Guidance against two plain forwards."""

import pytest
import torch

from mmdiff.decoding.cache import CACHES
from mmdiff.decoding.guide import Guided
from mmdiff.errors import SettingError
from tests.decoding.helpers import batch, requests


def unguided(model, canvas):
    """Logits of the masked cells when every prompt id is the mask id and no picture is seen."""
    ids = canvas.ids.clone()
    ids[:, : canvas.prompt_length] = model.config.mask_token_id
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
