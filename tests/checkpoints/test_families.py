"""The families at full size, without storage: every published tensor has its place."""

from math import prod
from pathlib import Path

import pytest

from mmdiff.checkpoints import weights
from mmdiff.checkpoints.base import FAMILIES, find, our_key, published_key
from mmdiff.errors import CheckpointError
from mmdiff.loading import config_of
from tests.checkpoints.helpers import shapes
from tests.checkpoints.published_configs import PUBLISHED

HERE = Path("published")


@pytest.fixture(scope="module")
def full_size():
    """Family name -> (family, config, model without storage); each is made once."""
    made = {}

    def build(name):
        if name not in made:
            found, family = find(PUBLISHED[name], str(HERE))
            assert found == name
            config = config_of(family, PUBLISHED[name], HERE)
            made[name] = family, config, weights.empty(config, HERE)
        return made[name]

    return build


def test_every_family_but_our_own_has_a_published_config():
    assert set(FAMILIES.names()) == {*PUBLISHED, "mmdiff"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_and_shapes_are_those_of_the_model(full_size, name):
    family, _, model = full_size(name)
    published = shapes(PUBLISHED[name])
    ours = {key: our_key(family, key) for key in published}
    unused = [key for key, mapped in ours.items() if mapped is None]
    assert all(".post_layernorm." in key for key in unused)
    assert len(unused) == (2 if model.vision and name != "dimple" else 0)
    used = {key: mapped for key, mapped in ours.items() if mapped is not None}
    assert len(set(used.values())) == len(used)
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert {mapped: published[key] for key, mapped in used.items()} == wanted
    assert {mapped: published_key(family, mapped) for mapped in wanted} == {
        mapped: key for key, mapped in used.items()
    }


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llada", 8.02),
        ("dream", 7.62),
        ("illada", 7.62),
        ("lavida-llada", 8.43),
        ("llada-v", 8.43),
        ("sdar", 8.19),
        ("sdar-vl", 8.62),
        ("dimple", 8.32),
    ],
)
def test_parameters(full_size, name, billions):
    model = full_size(name)[2]
    count = sum(parameter.numel() for parameter in model.parameters())
    assert all(parameter.is_meta for parameter in model.parameters())
    assert count == sum(map(prod, shapes(PUBLISHED[name]).values())) - (
        2 * 1152 if model.vision and name != "dimple" else 0
    )
    assert count / 1e9 == pytest.approx(billions, abs=0.02)


@pytest.mark.parametrize(
    ("name", "mask", "used", "theta"),
    [
        ("llada", 126336, 126349, 5e5),
        ("dream", 151666, 151667, 1e6),
        ("lavida-llada", 126336, 126349, 5e5),
        ("lavida-dream", 151666, 151667, 1e6),
        ("llada-v", 126336, 126349, 5e5),
        ("mmada", 126336, 126349 + 8192, 5e5),
        ("lumina", 126336, 126356 + 8192, 5e5),
    ],
)
def test_facts_that_no_shape_shows(full_size, name, mask, used, theta):
    _, config, model = full_size(name)
    assert (config.mask_token_id, config.vocab_used) == (mask, used)
    assert config.shift is ("dream" in name)
    assert config.text_config["rope_theta"] == theta
    assert config.text_config["rms_norm_eps"] == (1e-6 if "dream" in name else 1e-5)
    if model.vision:
        assert model.image_tokens == 729
        assert config.tiling["pool"] == (None if name == "llada-v" else "bilinear")
        assert config.tiling["max_tiles"] == (4 if name == "llada-v" else None)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("llada", {"block_type": "sequential"}, "block_type='sequential' is not supported"),
        ("llada", {"d_model": "wide"}, "describes no model"),
        ("mmada", {"codebook_size": 9000}, "9000 image codes from id 126349 do not fit"),
        ("dream", {"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ("llada-v", {"mm_vision_tower": "clip-vit"}, "'clip-vit' is not one of"),
        ("lavida-llada", {"vision_config": 5}, "cannot be used"),
        ("lavida-llada", {"image_aspect_ratio": "highres"}, "image_aspect_ratio"),
    ],
)
def test_a_config_that_cannot_be_used(name, change, words):
    family = FAMILIES.get(name)
    with pytest.raises(CheckpointError, match=words) as caught:
        weights.empty(config_of(family, PUBLISHED[name] | change, HERE), HERE)
    assert str(caught.value).startswith("published/config.json")


def test_a_config_that_lacks_a_size():
    published = {key: value for key, value in PUBLISHED["llada"].items() if key != "n_layers"}
    with pytest.raises(CheckpointError, match=r"published/config.json lacks the key 'n_layers'"):
        config_of(FAMILIES.get("llada"), published, HERE)
