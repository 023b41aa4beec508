"""Pictures as patches: transformers' own processor, bounds, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmdiff.encoders.vision.patches import Patching, read_cutting
from mmdiff.errors import CheckpointError, InputError, SettingError

try:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil as Published,
    )
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
except ImportError:  # older versions had one class for both
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import (
        Qwen2VLImageProcessor as Published,
    )
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

SMALL = Patching(min_pixels=56 * 56, max_pixels=28 * 28 * 12)
SIZES = [(28, 28), (200, 90), (91, 300), (13, 400), (5, 5), (57, 56), (14, 700), (1000, 990)]


def noise(size):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("patching", [Patching(), SMALL])
@pytest.mark.parametrize("size", SIZES)
def test_the_grid_is_the_published_one(patching, size):
    bounds = {"min_pixels": patching.min_pixels, "max_pixels": patching.max_pixels}
    high, wide = smart_resize(size[1], size[0], factor=28, **bounds)
    assert patching.grid(size) == (wide // 28, high // 28)
    assert patching.count(size) == wide * high // 784


# Sizes that every version of Pillow resizes across first.
@pytest.mark.parametrize("size", [(28, 28), (200, 90), (5, 5), (57, 56)])
def test_patches_are_those_of_transformers(size):
    bounds = {"shortest_edge": SMALL.min_pixels, "longest_edge": SMALL.max_pixels}
    theirs = Published(size=bounds)(noise(size), return_tensors="pt")
    made = SMALL.cut(noise(size))
    columns, rows = made.grid
    assert theirs["image_grid_thw"].tolist() == [[1, 2 * rows, 2 * columns]]
    torch.testing.assert_close(made.pixels, theirs["pixel_values"], rtol=0, atol=1e-5)
    (block,) = SMALL.blocks(made.pixels, theirs["image_grid_thw"])
    assert (block.grid, block.cells) == (made.grid, SMALL.count(size))
    assert SMALL.patch_grids([made.grid]).tolist() == theirs["image_grid_thw"].tolist()


@pytest.mark.parametrize(
    ("shape", "grids", "words"),
    [
        ((4, 1176), [[1, 2, 4]], "does not fit"),
        ((4, 1175), [[1, 2, 2]], "must be patches"),
        ((8, 1176), [[2, 2, 2]], "is no picture"),
        ((6, 1176), [[1, 2, 3]], "is no picture"),
        ((1, 3, 28, 28), [[1, 2, 2]], "must be patches"),
    ],
)
def test_patches_that_do_not_fit_are_refused(shape, grids, words):
    with pytest.raises(InputError, match=words):
        Patching().blocks(torch.zeros(shape), torch.tensor(grids))


def test_bounds_come_from_the_folder(tmp_path):
    assert Patching().with_file(tmp_path) == Patching()
    said = {"min_pixels": 784, "max_pixels": 7840, "image_mean": [0.1, 0.2, 0.3]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    made = Patching().with_file(tmp_path)
    assert (made.most, made.mean, made.std) == (10, (0.1, 0.2, 0.3), Patching.std)
    said = {"size": {"shortest_edge": 784, "longest_edge": 1568}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert Patching().with_file(tmp_path).most == 2
    (tmp_path / "preprocessor_config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json: cannot be read"):
        Patching().with_file(tmp_path)


def test_settings():
    assert read_cutting(json.loads(json.dumps(vars(SMALL)))) == SMALL
    assert read_cutting({"size": 28}).size == 28
    for wrong in ({"max_pixels": 100}, {"max_pixels": 10**4, "path": 3}):
        with pytest.raises(SettingError, match="patching"):
            read_cutting(wrong)
