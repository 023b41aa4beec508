"""Names, folders and devices on the way to a model."""

import pytest
import torch

import mmdiff
from mmdiff.errors import CheckpointError, SettingError
from mmdiff.loading import check_device, resolve


@pytest.mark.parametrize("name", ["foo", "gpu", "cuda:x", "cuda:99", "cpu:3", "mps:7", "cuda:-1"])
def test_a_device_that_is_not_here(checkpoint, name):
    with pytest.raises(SettingError, match=f"device {name}: ") as caught:
        mmdiff.load(checkpoint, device=name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu")])
def test_the_processor_is_always_a_device(checkpoint, device):
    assert mmdiff.load(checkpoint, device=device).device.type == "cpu"


def test_no_device_is_no_complaint():
    assert check_device(None) is None
    assert check_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["x" * 5000, "no/such/folder", "\0", ""])
def test_what_is_no_model_is_one_line(name):
    with pytest.raises(CheckpointError) as caught:
        resolve(name)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, {"backbone": "cpu", "lm_head": "cpu"}])
def test_a_device_map_of_one_device(checkpoint, device_map):
    assert mmdiff.load(checkpoint, device_map=device_map).device.type == "cpu"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"device_map": {"backbone": "cpu", "lm_head": 0}}, "onto one device"),
        ({"device_map": {}}, "onto one device"),
        ({"device_map": "cpu", "device": "cpu"}, "one of the two"),
        ({"device_map": 99}, "cuda:99"),
        ({"device_map": "balanced"}, "unknown; use cpu"),
    ],
)
def test_a_device_map_that_cannot_be_followed(checkpoint, given, words):
    with pytest.raises(SettingError, match=words):
        mmdiff.load(checkpoint, **given)
