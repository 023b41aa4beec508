"""cache=refresh against layers written out cell by cell, and where it is exact."""

import pytest
import torch
import torch.nn.functional as F

from mmdiff.errors import SettingError
from mmdiff.model import MMDiffConfig, MMDiffModel
from tests.decoding.helpers import REQUESTS, answers, batch, fill, make_row, requests
from tests.decoding.plain_layers import PlainLayers, said
from tests.helpers import ids


def by_hand(model, row, every_prompt, every_answer, share):
    """One row's answer, one cell a step."""
    view = batch(model, row)
    layers, start, length = PlainLayers(model, view), view.prompt_length, view.shape[1]
    prompt, answer = list(range(start)), list(range(start, length))
    masked, embeds = list(answer), model.embed(view)[0]
    count = len(layers.keys)
    kept, added = [{} for _ in range(count)], [{} for _ in range(count)]
    step = 0
    while masked:
        x = {c: embeds[c] for c in range(length)}
        for number in range(count):
            fed = prompt if step % every_prompt == 0 else []
            values = layers.values_of(number, torch.stack([x[c] for c in answer]))
            if step % every_answer == 0 or number == 0:
                fed = fed + answer
            else:
                before = torch.stack([kept[number][c] for c in answer])
                alike = F.cosine_similarity(values, before, dim=1).tolist()
                moved = sorted(answer, key=lambda c: alike[c - start])
                fed = fed + sorted(moved[: int(share * len(answer))])
            for c, value in zip(answer, values, strict=True):
                kept[number][c] = value
                depth = model.backbone.layers[number].self_attn.head_dim
                layers.values[number][c] = value.view(-1, depth)
            made = {}
            if fed:
                made = layers.layer(number, torch.stack([x[c] for c in fed]), fed)
                made = dict(zip(fed, made, strict=True))
            for c in fed:
                added[number][c] = made[c] - x[c]
            x = {c: x[c] + added[number][c] for c in range(length)}
        hidden = model.backbone.norm(torch.stack([x[c] for c in answer]))
        best_ids, chance = said(model, hidden)
        best = max(masked, key=lambda c: chance[c - start])
        view.ids[0, best] = best_ids[best - start]
        embeds[best] = model.get_input_embeddings()(view.ids[0, best])
        masked.remove(best)
        step += 1
    return view.ids[0, start:].tolist()


@torch.inference_mode()
@pytest.mark.parametrize(
    ("prompt", "answer", "share"), [(100, 7, 0.25), (3, 2, 0.5), (2, 4, 0.7), (2, 3, 0.1)]
)
def test_refresh_equals_the_layers_written_out(model, prompt, answer, share):
    model.config.attention_layout, model.config.picture_apart = "full", False
    rule = f"refresh:prompt={prompt},answer={answer},share={share}"
    filled = fill(model, *requests(model), cache=rule, trace=True)
    rows = (make_row(model.processor, *request) for request in REQUESTS)
    assert answers(filled) == [by_hand(model, row, prompt, answer, share) for row in rows]
    plain = fill(model, *requests(model), cache="none", trace=True)
    last, exact = (run.trace[-1].probability for run in (filled, plain))
    assert float((last - exact).abs().max()) > 1e-3  # there is a difference to see


@pytest.mark.parametrize("layout", ["full", "prefix", "block"])
@pytest.mark.parametrize("rule", ["prompt=1,answer=1", "prompt=1,answer=9,share=1"])
def test_what_is_refreshed_every_time_is_exact(model, layout, rule):
    model.config.attention_layout, model.config.picture_apart = layout, layout != "full"
    settings = {"block_length": 4, "cfg_scale": 0.5, "steps": 4, "trace": True}
    runs = [
        fill(model, *requests(model), cache=cache, **settings)
        for cache in ("none", f"refresh:{rule}")
    ]
    assert answers(runs[0]) == answers(runs[1])
    for one, other in zip(runs[0].trace, runs[1].trace, strict=True):
        torch.testing.assert_close(one.probability, other.probability, atol=1e-5, rtol=1e-4)


SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
KINDS = [
    {"model_type": "qwen2"},
    {"model_type": "qwen3", "head_dim": 8},
    {"model_type": "qwen2_5_vl_text", "rope_parameters": MROPE},
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["model_type"])
def test_every_backbone_named_is_computed_as_it_computes_itself(kind):
    made = MMDiffConfig(text_config=SIZES | kind, mask_token_id=60, eos_token_id=61)
    model = MMDiffModel(made).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(10)
    prompt, valid = ids(2, 7) % 60, torch.ones(2, 7, dtype=torch.long)
    valid[0, :3] = 0
    settings = {"attention_mask": valid, "max_new_tokens": 8, "steps": 4, "stop": "none"}
    plain, whole, part = (
        model.generate(prompt, cache=cache, **settings).sequences.tolist()
        for cache in ("none", "refresh:prompt=1,answer=2,share=1", "refresh:answer=9,share=0.2")
    )
    assert whole == plain != part


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("refresh:share=2", "share=2 must lie in"),
        ("refresh:answer=0", "answer=0 must be a whole number"),
        ("refresh:sahre=1", "Did you mean share"),
    ],
)
def test_bad_options_are_refused(model, rule, words):
    with pytest.raises(SettingError, match=words):
        fill(model, requests(model)[0], cache=rule)


def test_an_unknown_backbone_is_refused(model, monkeypatch):
    monkeypatch.setattr(model.backbone.config, "model_type", "gemma3_text")
    with pytest.raises(SettingError, match="not gemma3_text"):
        fill(model, requests(model)[0], cache="refresh")
