"""`mmdiff info` and `mmdiff models`."""

import pytest

import mmdiff.cli.models
from mmdiff.checkpoints.base import FAMILIES, NATIVES
from mmdiff.cli.models import LICENCES
from mmdiff.loading import BUILT_IN, load


@pytest.fixture
def built_in(checkpoint, monkeypatch):
    from pathlib import Path

    monkeypatch.setattr(mmdiff.cli.models, "BUILT_IN", {"mmdiff/tiny": Path(checkpoint)})


def test_info_agrees_with_the_model(run, checkpoint):
    (facts,) = run("info", checkpoint, "--json").rows
    model = load(checkpoint, device="cpu")
    parameters = facts["parameters"]
    assert parameters["total"] == sum(p.numel() for p in model.parameters())
    assert parameters["vision"] == sum(p.numel() for p in model.vision.parameters())
    assert facts["memory_bf16_bytes"] == 2 * parameters["total"]
    assert facts["tokens_per_picture"] == model.processor.image.tokens
    assert facts["vision"]["image_size"] == model.processor.image.size
    assert facts["vocabulary"]["used"] == len(model.processor.tokenizer)
    assert facts["attention_layout"] == "prefix"
    assert facts["prompt_cache_exact"] is True
    assert facts["decoding"] == {"max_new_tokens": 6}
    assert facts["stored"]["dtypes"] == ["F32"]


def test_info_as_a_table(run, checkpoint):
    outcome = run("info", checkpoint)
    assert outcome.code == 0
    assert "32 x 32 pixels -> 16 tokens" in outcome.out


@pytest.mark.usefixtures("built_in")
def test_models(run):
    model, *families = run("models", "--json").rows
    assert model["model"] == "mmdiff/tiny"
    assert model["parameters"] > 0
    assert [row["family"] for row in families] == FAMILIES.names() + NATIVES.names()
    hub = {row["family"]: row["hub"] for row in families}
    assert hub["llada"]["GSAI-ML/LLaDA-8B-Instruct"] == "MIT"
    assert hub["mmdiff"] == {}


@pytest.mark.usefixtures("built_in")
def test_models_as_tables_fit_80_columns(run):
    lines = run("models").out.splitlines()
    assert max(map(len, lines)) <= 80
    for word in ("mmdiff/tiny", "Apache-2.0", "lavida-dream", "LaViDa (Dream)"):
        assert any(word in line for line in lines)
    for name in FAMILIES.names():
        assert all(any(i in line for line in lines) for i in FAMILIES.get(name).hub)


def test_every_built_in_model_has_a_licence():
    assert set(LICENCES) == set(BUILT_IN)
