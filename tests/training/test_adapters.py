"""Adapters and frozen parts: what learns, what is stored, and that it loads everywhere."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import mmdiff
from mmdiff.errors import CheckpointError, SettingError
from tests.training.test_training import interrupted, logged, recipe, shorten_text, train

PICTURE = Image.new("RGB", (40, 30), "teal")
LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}


@pytest.fixture(autouse=True)
def _short_text(monkeypatch):
    shorten_text(monkeypatch)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    output = tmp_path_factory.mktemp("base") / "model"
    with pytest.MonkeyPatch.context() as patch:
        shorten_text(patch)
        train(output, max_steps=2, validate_every=9)
    return output


def run(output, base, **over):
    settings = {"model": str(base), "lora": LORA, "optimizer": "adamw", "lr": 1e-2, "max_steps": 4}
    return train(output, **{**settings, "rates": {"vision": 0}, **over})


def moved(base, output):
    """Names of the tensors that differ between two models."""
    one, other = mmdiff.load(base).state_dict(), mmdiff.load(output).state_dict()
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_train_load_and_decode(base, tmp_path, dora):
    output = tmp_path / "run"
    run(output, base, lora={**LORA, "dora": dora})
    names = {path.name for path in output.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert "model.safetensors" not in names
    assert all("lora_" in name for name in load_file(output / "adapter_model.safetensors"))
    changed = moved(base, output)
    assert any("q_proj" in n for n in changed) and any("down_proj" in n for n in changed)
    assert any(n.startswith("projector.") for n in changed)
    assert not any(n.startswith("vision.") or "embed" in n or "norm" in n for n in changed
                   if not n.startswith("projector."))  # fmt: skip
    model = mmdiff.load(output)
    assert model.caption(PICTURE, max_new_tokens=3).nfe > 0
    assert not any("lora" in name for name in model.state_dict())


def test_merged_adapters_give_the_trained_models_logits(base, tmp_path):
    from mmdiff.training.loop import Trainer

    made = recipe(tmp_path / "run", model=str(base), lora=LORA, ema=0.0, lr=1e-2, max_steps=3)
    trainer = Trainer(made)
    trainer.run()
    ids = torch.tensor([[5, 6, 7, 300, 301]])
    with torch.inference_mode():
        trained = trainer.model.eval()(ids).logits
        loaded = mmdiff.load(tmp_path / "run")(ids).logits
    torch.testing.assert_close(loaded, trained, rtol=1e-4, atol=1e-5)


def test_an_interrupted_adapter_run_goes_on_bit_for_bit(base, tmp_path):
    settings = {"model": str(base), "lora": LORA, "rates": {"vision": 0, "projector": 0.5}}
    train(tmp_path / "whole", **settings)
    interrupted(tmp_path / "run", after=4, **settings)
    train(tmp_path / "run", resume=True, **settings)
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")
    kept = load_file(tmp_path / "run" / "checkpoints" / "step-0000006" / "model.safetensors")
    assert all("lora_" in name or name.startswith("projector.") for name in kept)
    for name in ("adapter_model.safetensors", "trained_modules.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("rates", "still"),
    [
        ({"vision": 0, "backbone": 0}, ("vision.", "backbone.")),
        ({"projector": 0.1, "backbone": 0}, ("backbone.",)),
    ],
)
def test_frozen_parts_stay_as_they_were(base, tmp_path, rates, still):
    run(tmp_path / "run", base, lora=None, rates=rates)
    changed = moved(base, tmp_path / "run")
    assert changed and not any(name.startswith(still) for name in changed)


def test_settings_that_cannot_be_used_are_refused(base, tmp_path):
    with pytest.raises(SettingError, match="one must be above 0"):
        recipe(tmp_path, rates={"vision": 0, "projector": 0, "backbone": 0})
    with pytest.raises(CheckpointError, match="lora: "):
        run(tmp_path / "none", base, lora={"targets": ["no_such_layer"]})
    assert not (tmp_path / "none").exists()


def test_adapters_of_another_base_are_refused(base, tmp_path):
    output = tmp_path / "run"
    run(output, base, max_steps=1)
    path = output / "adapter_config.json"
    path.write_text(path.read_text().replace(str(base), str(tmp_path / "gone")))
    with pytest.raises(CheckpointError, match="gone"):
        mmdiff.load(output)
    path.write_text(path.read_text().replace(str(tmp_path / "gone"), "mmdiff/tiny"))
    with pytest.raises(CheckpointError, match="adapters that do not fit their base"):
        mmdiff.load(output)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        mmdiff.load(output)
