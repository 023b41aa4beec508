"""DiffusionGemma: transformers' network and loop under our names."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mmdiff
from mmdiff.errors import CheckpointError, InputError, SettingError
from tests.checkpoints.helpers import write_gemma

if not hasattr(transformers, "DiffusionGemmaForBlockDiffusion"):
    pytest.skip("this transformers has no DiffusionGemma", allow_module_level=True)

FAST = {"max_new_tokens": 10, "steps": 9, "stop": "none"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gemma") / "model"
    write_gemma(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return mmdiff.load(folder, device="cpu")


def prompt(seed, cells=5):
    return torch.randint(3, 60, (1, cells), generator=torch.Generator().manual_seed(seed))


def test_generate_is_transformers_own(model):
    """The same numbers under the same seed, apart from the ids of pictures."""
    from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
        EntropyBoundSamplerConfig,
    )

    torch.manual_seed(7)
    theirs = model.network.generate(
        prompt(0),
        max_new_tokens=12,
        max_denoising_steps=4,
        t_max=0.9,
        t_min=0.3,
        sampler_config=EntropyBoundSamplerConfig(entropy_bound=0.5),
        stability_threshold=1,
        confidence_threshold=2.0,
        logits_processor=LogitsProcessorList([SuppressTokensLogitsProcessor([60, 61, 62])]),
        eos_token_id=1,
    )
    ours = model.generate(
        prompt(0),
        max_new_tokens=12,
        steps=8,
        temperature=0.9,
        temperature_end=0.3,
        entropy_bound=0.5,
        stop="stable:stability=1,confidence=2.0",
        seed=7,
    )
    made = theirs.sequences[0].tolist()
    assert ours.sequences[0, : len(made)].tolist() == made
    assert ours.nfe.tolist() == [ours.calls]
    assert 2 <= ours.calls <= 8


def test_a_batch_equals_its_rows_alone_and_padding_changes_nothing(model):
    long, short = prompt(1, 6), prompt(2, 4)
    both = torch.cat([long, torch.cat([torch.zeros(1, 2).long(), short], dim=1)])
    mask = torch.ones_like(both)
    mask[1, :2] = 0
    state = torch.random.get_rng_state()
    together = model.generate(both, attention_mask=mask, seed=[3, 4], **FAST)
    assert torch.equal(torch.random.get_rng_state(), state)
    for row, (ids, seed) in enumerate(((long, 3), (short, 4))):
        alone = model.generate(ids, seed=seed, **FAST)
        assert torch.equal(alone.sequences[0, -10:], together.sequences[row, -10:])
        assert int(alone.nfe) == int(together.nfe[row]) == 8  # 4 for each of two canvases
    other = model.generate(long, seed=5, **FAST)
    assert not torch.equal(other.sequences[0], together.sequences[0])


def test_pictures_are_never_generated(model):
    made = model.generate(
        prompt(1), temperature=50.0, **(FAST | {"max_new_tokens": 60, "steps": 20})
    )
    assert not {60, 61, 62} & set(made.sequences[0, 5:].tolist())


def test_an_end_is_followed_by_padding(model):
    plain = model.generate(prompt(1), **FAST).sequences[0, 5:].tolist()
    end = plain[3]
    stopped = model.generate(prompt(1), stop_ids=(end,), **FAST)
    at = plain.index(end)
    assert stopped.sequences[0, 5:].tolist() == plain[: at + 1] + [0] * (9 - at)
    assert int(stopped.nfe) == 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cfg_scale": 1.0}, "no setting 'cfg_scale'"),
        ({"entropy_bond": 1.0}, "Did you mean entropy_bound"),
        ({"stop": "cut"}, "no stop=cut"),
        ({"temperature": 0.0, "temperature_end": None}, "temperature above 0"),
        ({"steps": 1, "max_new_tokens": 10}, "fewer than the 2 blocks"),
    ],
)
def test_settings_that_it_has_not(model, settings, words):
    with pytest.raises(SettingError, match=words):
        model.generate(prompt(0), **settings)


def test_without_a_tokenizer_there_are_raw_ids_alone(model):
    with pytest.raises(InputError, match="no processor files"):
        model.chat([{"role": "user", "content": "hello"}])


def test_a_missing_or_unknown_tensor(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    gone = next(key for key in tensors if key.endswith("router.scale"))
    for change, words in (
        ({k: t for k, t in tensors.items() if k != gone}, "lacks the weight"),
        (tensors | {"model.extra.weight": torch.zeros(2)}, "the model has not: model.extra"),
        (tensors | {gone: torch.zeros(3)}, "wrong shape|cannot be loaded"),
    ):
        save_file(change, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=words):
            mmdiff.load(tmp_path, device="cpu")


def test_an_old_transformers(folder, monkeypatch):
    from mmdiff.checkpoints import diffusion_gemma

    monkeypatch.setattr(diffusion_gemma, "CLASS", "NoSuchClass")
    with pytest.raises(CheckpointError, match=r"needs transformers 5\.11 or newer"):
        mmdiff.load(folder, device="cpu")


def test_there_is_nothing_to_convert(folder, tmp_path):
    from mmdiff.checkpoints.convert import convert

    with pytest.raises(CheckpointError, match="transformers' own network"):
        convert(folder, tmp_path / "new")
