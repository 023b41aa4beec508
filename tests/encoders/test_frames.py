"""What codes are made of: crops against torchvision's and by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmdiff.encoders.codes.frames import fitted, middle, shapes, square, to_pixels

SIZES = [(40, 30), (30, 40), (7, 20), (64, 64), (33, 50), (301, 77)]


def noise(size, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [16, 33, 64])
def test_a_square_is_torchvisions(size, side):
    transforms = pytest.importorskip("torchvision.transforms")
    how = transforms.InterpolationMode.BICUBIC
    steps = [transforms.Resize(side, how), transforms.CenterCrop((side, side))]
    picture = noise(size)
    expected = transforms.Compose(
        [*steps, transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    )
    assert torch.equal(to_pixels(square(picture, side))[0], expected(picture))


def test_shapes_are_a_staircase():
    """Shapes of four patches, by hand: from 4 x 1 up while that fits, else to the left."""
    walk = {(4, 1), (3, 1), (2, 1), (2, 2), (1, 2), (1, 3), (1, 4)}
    assert set(shapes(64)) == {(32 * w, 32 * h) for w, h in walk}
    published = shapes(1024)
    assert (1024, 1024) in published and len(set(published)) == len(published)
    for w, h in published:
        assert w % 32 == h % 32 == 0 and max(w, h) <= 4 * min(w, h)
        assert w * h <= 1024**2 < (w + 32) * (h + 32)


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((300, 300), (512, 512)),
        ((4000, 1000), (1024, 256)),
        ((10, 400), (256, 1024)),  # as long as shapes get
        ((640, 480), (576, 448)),
    ],
)
def test_the_shape_most_like_the_picture(size, shape):
    assert fitted(noise(size), 512).size == shape

    def likeness(other):
        across, down = other[0] / size[0], other[1] / size[1]
        return min(across, down) / max(across, down)

    assert likeness(shape) == max(map(likeness, shapes(512)))


def test_a_fitted_picture_is_the_middle_of_all_that_fits():
    picture = noise((512, 300))
    whole = picture.resize((round(512 * 384 / 300), 384), Image.Resampling.BICUBIC)
    assert fitted(picture, 512).tobytes() == middle(whole, (640, 384)).tobytes()
    large = noise((2060, 2052))  # halved while both sides hold the shape twice
    halved = large.resize((1030, 1026), Image.Resampling.BOX)
    halved = halved.resize((515, 513), Image.Resampling.BOX)
    size = round(515 * 512 / 513), 512
    expected = middle(halved.resize(size, Image.Resampling.BICUBIC), (512, 512))
    assert fitted(large, 512).tobytes() == expected.tobytes()


def test_pixels():
    picture = Image.new("RGB", (3, 2), (0, 255, 51))
    made = to_pixels(picture)
    assert made.shape == (1, 3, 2, 3)
    torch.testing.assert_close(made[0, :, 1, 2], torch.tensor([-1.0, 1.0, -0.6]))
