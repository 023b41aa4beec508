"""Tiles and visual tokens against the published models' arrays, and against plain loops."""

import functools
import json
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmdiff.encoders.vision import tiles
from mmdiff.encoders.vision.tiles import Tiling
from mmdiff.errors import SettingError

ROOT = Path(__file__).parents[2]
FAMILIES = ("lavida_llada", "lavida_dream", "llada_v")
LAVIDA = FAMILIES[:2]
WORDS = ("model.embed_tokens.weight", "model.transformer.wte.weight")
TOWER = "model.vision_tower.vision_tower.vision_model."
LAVIDA_POINTS = ((384, 768), (768, 384), (768, 768), (1152, 384), (384, 1152))
SHAPES = [(1, 5000), (5000, 1), (1, 1), (3, 4000), (4000, 3), (640, 480), (97, 101), (768, 768)]


def golden(family):
    """(config, settings, inputs, outputs, weights) of a published model's record; skips without."""
    from safetensors.torch import load_file

    places = [ROOT / "tests" / "golden", ROOT.parent / "shared" / "golden"]
    root = next((place for place in places if (place / "index.json").is_file()), None)
    if root is None:
        pytest.skip("no golden/index.json in tests/ or in ../shared")
    entries = json.loads((root / "index.json").read_text())["entries"]
    files = next((e["files"] for e in entries if e["id"] == f"vlm/{family}"), None)
    if files is None:
        pytest.skip(f"the golden index has no vlm/{family}")
    config, recorded = (json.loads((root / files[k]).read_text()) for k in ("config", "settings"))
    return config, recorded, *(load_file(root / files[k]) for k in ("inputs", "outputs", "weights"))


def golden_tiling(family, **change):
    config = golden(family)[0] | change
    return Tiling.from_llava(config, 81, pooled=family in LAVIDA and not change)


def golden_image(family, name):
    return Image.fromarray(golden(family)[2][f"image_{name}_uint8_hwc"].numpy())


@functools.cache
def seer(family):
    """Tower and projector of a recorded model: pixels (n, 3, 81, 81) -> tokens (n, 729, 48)."""
    from mmdiff.encoders.projectors import build_projector
    from mmdiff.encoders.vision import build_vision

    config, _, _, _, weights = golden(family)
    kind = {"source": "transformers", "model_type": "siglip_vision_model", "select_layer": -2}
    tower = build_vision(kind | {"config": config["vision_config_tiny"]})
    kept = {k.removeprefix(TOWER): v for k, v in weights.items() if k.startswith(TOWER)}
    tower.net.load_state_dict({k: v for k, v in kept.items() if "post_layernorm" not in k})
    projector = build_projector("mlp2x_gelu", 24, 48)
    prefix = "model.mm_projector."
    kept = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    projector.layers.load_state_dict(kept)
    return torch.nn.Sequential(tower, projector).eval()


@torch.no_grad()
def block(family, name, tiling):
    """The visual tokens of a recorded picture, from its pixels on."""
    newline = golden(family)[4]["model.image_newline"]
    cut = tiles.cut(golden_image(family, name), tiling)
    made = tiles.merge(seer(family)(cut.pixels), cut.grid, cut.size, tiling, newline)
    assert len(made) == tiles.count(cut.size, tiling, 27)
    return made


def merged(family, ids, blocks):
    """Word embeddings of `ids` with the next block in place of each -200."""
    weights = golden(family)[4]
    table = next(weights[name] for name in WORDS if name in weights)
    blocks = iter(blocks)
    return torch.cat([next(blocks) if i == -200 else table[i][None] for i in ids[0].tolist()])


def stats(embeds):
    return torch.stack([embeds.mean(1), embeds.pow(2).mean(1).sqrt()])


def near(made, recorded):
    torch.testing.assert_close(made, recorded, atol=1e-4, rtol=1e-4)


PICTURES = [(family, name) for family in LAVIDA for name in ("wide", "tall")]
PICTURES += [("llada_v", "small"), ("llada_v", "big")]


@pytest.mark.parametrize(("family", "name"), PICTURES)
def test_the_tiles_are_the_published_ones(family, name):
    _, recorded, _, outputs, _ = golden(family)
    tiling, image = golden_tiling(family), golden_image(family, name)
    made = tiles.cut(image, tiling)
    expected = outputs[f"pixels_{name}_uint8"]
    assert torch.equal(((made.pixels + 1) * 127.5).round().byte(), expected)
    near(made.pixels, expected / 127.5 - 1)
    best = tiles.best_resolution(image.size, tiling.pinpoints)
    assert list(best) == recorded[f"best_resolution_{name}"]
    assert made.grid == (best[0] // 81, best[1] // 81) == tiles.grid_of(image.size, tiling)
    assert list(made.grid) == recorded.get(f"grid_{name}", list(made.grid))
    assert made.size == image.size


@pytest.mark.parametrize("family", FAMILIES)
def test_the_projected_tokens_are_the_published_ones(family):
    outputs = golden(family)[3]
    name = "wide" if family in LAVIDA else "small"
    with torch.no_grad():
        made = seer(family)(tiles.cut(golden_image(family, name), golden_tiling(family)).pixels)
    near(made[0], outputs["projected_tile0"])
    if family in LAVIDA:
        near(tiles.pool(made, "bilinear"), outputs["pooled_bilinear"])
        near(tiles.pool(made, "average")[0], outputs["pooled_average_tile0"])


@pytest.mark.parametrize("family", LAVIDA)
def test_the_merged_rows_are_those_of_lavida(family):
    _, _, inputs, outputs, _ = golden(family)
    tiling = golden_tiling(family)
    wide, tall = (block(family, name, tiling) for name in ("wide", "tall"))
    one = merged(family, inputs["input_ids_one_image"], [wide])
    near(one, outputs["merged_embeds_one_image"])
    two = merged(family, inputs["input_ids_two_images"], [wide, tall])
    near(stats(two), outputs["merged_embeds_two_images_stats"])


@pytest.mark.parametrize("family", LAVIDA)
def test_the_low_resolution_row_is_that_of_lavida(family):
    _, recorded, inputs, outputs, _ = golden(family)
    tiling = golden_tiling(family, image_aspect_ratio="pad")
    pixels = tiles.cut(golden_image(family, "wide"), tiling).pixels
    assert torch.equal(((pixels + 1) * 127.5).round().byte(), outputs["lowres_pixels_uint8"])
    row = merged(family, inputs["input_ids_one_image"], [block(family, "wide", tiling)])
    assert len(row) == recorded["merged_len_lowres"]
    near(row[:32], outputs["merged_embeds_lowres_first_32"])
    near(row[-16:], outputs["merged_embeds_lowres_last_16"])


@pytest.mark.parametrize("name", ["small", "big"])
def test_the_merged_row_is_that_of_llada_v(name):
    _, recorded, inputs, outputs, _ = golden("llada_v")
    visual = block("llada_v", name, golden_tiling("llada_v"))
    row = merged("llada_v", inputs["input_ids_one_image"], [visual])
    assert len(row) == recorded[f"merged_len_{name}"]
    near(stats(row), outputs[f"merged_embeds_{name}_stats"])
    if name == "big":
        near(row[-30:], outputs["merged_embeds_big_last_30"])


def spanned(columns, rows, size):
    every = ((c, r) for c in range(1, columns + 1) for r in range(1, rows + 1))
    return tuple((c * size, r * size) for c, r in every)


def best_by_loop(size, pinpoints):
    best, most, least = None, -1, None
    for width, height in pinpoints:
        scale = min(width / size[0], height / size[1])
        kept = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        waste = width * height - kept
        if kept > most or (kept == most and waste < least):
            best, most, least = (width, height), kept, waste
    return best


SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000)) | st.sampled_from(SHAPES)


@given(SIZES, st.sampled_from([LAVIDA_POINTS, spanned(6, 6, 384), spanned(3, 5, 50)]))
def test_the_best_resolution_is_that_of_the_loop(size, pinpoints):
    assert tiles.best_resolution(size, pinpoints) == best_by_loop(size, pinpoints)
    assert tiles.best_resolution(size, pinpoints[::-1]) == best_by_loop(size, pinpoints[::-1])


TILINGS = st.builds(
    Tiling,
    st.just(10),
    aspect=st.sampled_from(["anyres", "anyres", "pad", "squash"]),
    pinpoints=st.sampled_from([((10, 20), (20, 10), (20, 20), (30, 10)), spanned(6, 6, 10)]),
    max_tiles=st.sampled_from([None, 1, 2, 4]),
    unpad=st.booleans(),
    newline=st.booleans(),
    pool=st.sampled_from([None, *tiles.POOLS]),
) | st.builds(
    Tiling,
    st.just(10),
    aspect=st.just("anyres"),
    pinpoints=st.just(spanned(3, 3, 10)),
    pool=st.sampled_from([None, *tiles.POOLS]),
    flat=st.just(True),
)


@settings(max_examples=300)
@given(SIZES, TILINGS, st.integers(1, 9))
def test_count_is_the_length_of_merge(size, tiling, side):
    grid = tiles.grid_of(size, tiling)
    tokens = torch.zeros(1 + grid[0] * grid[1] if grid else 1, side * side, 2)
    merged = tiles.merge(tokens, grid, size, tiling, torch.ones(2))
    assert merged.shape == (tiles.count(size, tiling, side), 2)
    if not (tiling.flat and grid):
        assert merged.sum() / 2 == tiling.newline * rows_of(size, tiling, side)


def rows_of(size, tiling, side):
    """Rows of the map: what the newlines add to the count."""
    return tiles.count(size, replace(tiling, newline=True), side) - tiles.count(
        size, replace(tiling, newline=False), side
    )


def test_counts_of_the_published_models():
    lavida = Tiling(384, "anyres", LAVIDA_POINTS, unpad=True, newline=True, pool="bilinear")
    assert tiles.count((768, 768), lavida, 27) == 196 + 28 * 29
    assert tiles.count((640, 480), replace(lavida, aspect="pad", pool=None), 27) == 729 + 1
    llada_v = Tiling(384, "anyres", spanned(6, 6, 384), 4, unpad=True, newline=True)
    assert tiles.count((3000, 3000), llada_v, 27) == 729 + 54 * 55
    assert tiles.count((384, 384), llada_v, 27) == 729 + 27 * 28


def numbered(grid, side):
    """Tokens (n, side**2, 2) that say which row and column of the stitched map they are."""
    tile = [(r, c) for r in range(grid[1]) for c in range(grid[0])]
    cell = [(y, x) for y in range(side) for x in range(side)]
    cells = [[(r * side + y, c * side + x) for y, x in cell] for r, c in tile]
    return torch.tensor([[(-1, -1)] * side**2, *cells], dtype=torch.float64)


@pytest.mark.parametrize("size", [(30, 17), (17, 30), (7, 31), (60, 60), (1, 5000), (5000, 1)])
def test_merge_stitches_cuts_and_ends_rows(size):
    tiling = Tiling(10, "anyres", spanned(3, 3, 10), unpad=True, newline=True)
    grid, side = tiles.grid_of(size, tiling), 6
    made = tiles.merge(numbered(grid, side), grid, size, tiling, torch.full((2,), -9.0))
    rows, columns = grid[1] * side, grid[0] * side
    top = left = 0
    if size[0] / size[1] > columns / rows:
        top = (rows - max(1, int(size[1] * (columns / size[0])))) // 2
    else:
        left = (columns - max(1, int(size[0] * (rows / size[1])))) // 2
    expected = [(-1, -1)] * side**2
    for row in range(top, rows - top):
        expected += [(row, column) for column in range(left, columns - left)] + [(-9, -9)]
    assert made.tolist() == [list(pair) for pair in expected]


def test_merge_keeps_the_order_of_tiles_when_flat_and_of_rows_when_spatial():
    tokens = numbered((2, 1), 2)
    spatial = Tiling(10, "anyres", ((20, 10),))
    assert torch.equal(
        tiles.merge(tokens, (2, 1), (20, 10), replace(spatial, flat=True), None),
        tokens.flatten(0, 1),
    )
    rows = tiles.merge(tokens, (2, 1), (20, 10), spatial, None)[4:]
    assert rows.tolist() == [[y, x] for y in range(2) for x in range(4)]


def bilinear_by_loop(cells, height, width):
    """(h, w, D) -> (height, width, D), pixel centres as in align_corners=False, float64."""
    h, w, _ = cells.shape
    made = torch.zeros(height, width, cells.shape[2], dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            at = [max(0, (i + 0.5) * n / m - 0.5) for i, n, m in ((y, h, height), (x, w, width))]
            (y0, fy), (x0, fx) = ((int(p), p - int(p)) for p in at)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            upper = cells[y0, x0] * (1 - fx) + cells[y0, x1] * fx
            lower = cells[y1, x0] * (1 - fx) + cells[y1, x1] * fx
            made[y, x] = upper * (1 - fy) + lower * fy
    return made


@pytest.mark.parametrize("mode", tiles.POOLS)
@pytest.mark.parametrize("side", [1, 2, 3, 4, 7])
def test_pooling_is_that_of_the_loop(mode, side):
    tokens = torch.randn(2, side * side, 3, dtype=torch.float64)
    maps = tokens.view(2, side, side, 3)
    small = ceil(side / 2) if mode == "bilinear" else max(1, side // 2)
    if mode == "bilinear":
        expected = torch.stack([bilinear_by_loop(m, small, small) for m in maps])
    else:
        expected = torch.zeros(2, small, small, 3, dtype=torch.float64)
        for y in range(small):
            for x in range(small):
                cell = maps[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].flatten(1, 2)
                expected[:, y, x] = cell.mean(1) if mode == "average" else cell.amax(1)
    made = tiles.pool(tokens, mode)
    assert made.shape[1] == tiles.pooled_side(side, mode) ** 2
    torch.testing.assert_close(made, expected.flatten(1, 2), atol=1e-12, rtol=0)


def test_a_large_map_is_shrunk_bilinearly():
    tiling = Tiling(10, "anyres", spanned(3, 3, 10), max_tiles=2, newline=True)
    tokens = torch.randn(10, 16, 3, dtype=torch.float64)
    made = tiles.merge(tokens, (3, 3), (30, 30), tiling, torch.zeros(3))
    grid = tokens[1:].view(3, 3, 4, 4, 3).permute(0, 2, 1, 3, 4).reshape(12, 12, 3)
    # sqrt(12 * 12 / (2 * 4 * 4)) is 2.12, and 12 // 2.12 is 5
    expected = bilinear_by_loop(grid, 5, 5)
    rows = made[16:].view(5, 6, 3)
    torch.testing.assert_close(rows[:, :5], expected, atol=1e-12, rtol=0)
    assert torch.equal(made[:16], tokens[0]) and not rows[:, 5].any()


def test_a_slightly_large_map_is_not_shrunk():
    tiling = Tiling(10, "anyres", ((30, 40),), max_tiles=10)
    assert tiles.count((30, 40), tiling, 4) == 16 * 13  # sqrt(12 / 10) is 1.095
    assert tiles.count((30, 40), replace(tiling, max_tiles=9), 4) == 16 + 13 * 10


def test_gradients_reach_the_tokens_and_the_newline():
    tiling = Tiling(10, "anyres", ((20, 20),), unpad=True, newline=True, pool="bilinear")
    tokens, newline = torch.randn(5, 9, 2, requires_grad=True), torch.zeros(2, requires_grad=True)
    tiles.merge(tokens, (2, 2), (20, 20), tiling, newline).sum().backward()
    assert tokens.grad.ne(0).all() and newline.grad.tolist() == [4, 4]


def picture(width, height):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize(
    ("size", "target", "down_first"),
    [
        ((88, 132), (81, 81), True),
        ((150, 56), (81, 81), False),
        ((70, 76), (81, 81), False),
        ((100, 120), (90, 100), False),
        ((100, 121), (90, 100), True),
        ((100, 50), (120, 60), False),
        ((50, 90), (60, 90), False),
        ((3, 900), (20, 20), True),
    ],
)
def test_resizing_rounds_between_the_passes_as_pillow_13_does(size, target, down_first):
    image = picture(*size)
    between = (size[0], target[1]) if down_first else (target[0], size[1])
    expected = image.resize(between, 3).resize(target, 3)
    made = tiles.resized(image, target, Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(made), np.asarray(expected))


@pytest.mark.parametrize("size", [(300, 700), (700, 300), (33, 33), (20, 9), (1, 600), (600, 1)])
def test_padding_in_strips_equals_padding_at_once(size):
    image, large = picture(*size), max(size)
    square = Image.new("RGB", (large, large), (127, 0, 255))
    square.paste(image, ((large - size[0]) // 2, (large - size[1]) // 2))
    expected = square.resize((20, 20), Image.Resampling.BICUBIC)
    made = tiles.padded(image, 20, (127, 0, 255), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(made), np.asarray(expected))


def test_tiles_are_cut_row_by_row_from_the_middle_of_black():
    image = picture(25, 20)
    tiling = Tiling(10, "anyres", ((30, 20),), mean=(0.0,) * 3, std=(1.0,) * 3)
    made = tiles.cut(image, tiling)
    values = (made.pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()
    canvas = np.zeros((20, 30, 3), np.uint8)
    canvas[:, 2:27] = np.asarray(image)
    assert np.array_equal(values[0], np.asarray(image.resize((10, 10), Image.Resampling.BICUBIC)))
    for number in range(6):
        y, x = 10 * (number // 3), 10 * (number % 3)
        assert np.array_equal(values[1 + number], canvas[y : y + 10, x : x + 10])
    assert (made.grid, made.size, made.pixels.dtype) == ((3, 2), (25, 20), torch.float32)


def test_pixels_are_normalised_per_channel():
    image = Image.new("RGB", (4, 4), (51, 102, 255))
    tiling = Tiling(2, mean=(0.1, 0.2, 0.5), std=(0.1, 0.4, 0.25))
    expected = torch.tensor([1.0, 0.5, 2.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    torch.testing.assert_close(tiles.cut(image, tiling).pixels, expected)


@pytest.mark.parametrize("aspect", ["squash", "pad", "anyres"])
@pytest.mark.parametrize("size", SHAPES)
def test_a_picture_of_any_shape_is_cut_and_counted(aspect, size):
    tiling = Tiling(8, aspect, spanned(6, 6, 8), 4, unpad=True, newline=True, pool="average")
    cut = tiles.cut(Image.new("RGB", size), tiling)
    grid = tiles.grid_of(size, tiling)
    assert cut.grid == grid and len(cut.pixels) == (1 + grid[0] * grid[1] if grid else 1)
    assert cut.pixels.shape[1:] == (3, 8, 8) and cut.pixels.isfinite().all()
    made = tiles.merge(torch.zeros(len(cut.pixels), 4, 1), grid, size, tiling, torch.zeros(1))
    assert len(made) == tiles.count(size, tiling, 2) > 1


@pytest.mark.parametrize("text", ["(1x1),...,(3x2)", "(1x1), (3x2)", "(1x1),(2x1),...,(3x2)"])
def test_a_span_of_grids_is_every_grid_between(text):
    assert tiles.read_pinpoints(text, 7) == ((7, 7), (7, 14), (14, 7), (14, 14), (21, 7), (21, 14))


@pytest.mark.parametrize(
    "value", [[[7, 14], [21, 7]], ((7, 14), (21, 7)), "[(7, 14), (21, 7)]", "[[7,14],[21,7]]"]
)
def test_pairs_are_pixels(value):
    assert tiles.read_pinpoints(value, 7) == ((7, 14), (21, 7))


UNREADABLE = [None, "", [], "(1x1)", "(2x2),...,(1x1)", "(1x1),...,(100x100)", "7,14", "f('os')", 7]
UNREADABLE += [[7, 14], [[7, 14, 21]], [["7", "14"]], [[7.5, 14.0]], {"7": 14}]


@pytest.mark.parametrize("value", UNREADABLE)
def test_pinpoints_that_cannot_be_read(value):
    with pytest.raises(SettingError, match=r"image_grid_pinpoints .* use a list"):
        tiles.read_pinpoints(value, 7)


LLAVA = {
    "image_aspect_ratio": "anyres_max_4",
    "image_grid_pinpoints": "(1x1),...,(6x6)",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_spatial_pool_mode": "average",
}


def test_published_settings():
    made = Tiling.from_llava(LLAVA, 384, pooled=False)
    assert made == Tiling(384, "anyres", spanned(6, 6, 384), 4, unpad=True, newline=True)
    made = Tiling.from_llava(LLAVA | {"image_aspect_ratio": "anyres"}, 384, pooled=True)
    assert (made.max_tiles, made.pool, made.flat) == (None, "average", False)
    made = Tiling.from_llava(LLAVA | {"mm_patch_merge_type": "spatial"}, 384, pooled=False)
    assert made == Tiling(384, "anyres", spanned(6, 6, 384))
    made = Tiling.from_llava(LLAVA | {"image_aspect_ratio": "pad"}, 384, pooled=False)
    assert made == Tiling(384, "pad", unpad=True, newline=True)
    assert Tiling.from_llava({}, 384, pooled=False) == Tiling(384, flat=True)
    assert Tiling.from_llava({"image_aspect_ratio": None}, 384, pooled=True).pool == "bilinear"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"image_aspect_ratio": "highres"}, "'highres'; use square or pad or anyres"),
        ({"image_aspect_ratio": "anyres_max_0"}, "image_aspect_ratio is 'anyres_max_0'"),
        ({"mm_patch_merge_type": "spatial_maxpool2x2"}, "mm_patch_merge_type .* use flat or"),
        ({"mm_spatial_pool_mode": "conv"}, "pool is 'conv'; use"),
        ({"image_grid_pinpoints": None}, "image_grid_pinpoints"),
        ({"image_grid_pinpoints": [[336, 672]]}, "336 pixels; .* multiples of 384"),
    ],
)
def test_published_settings_that_are_refused(change, text):
    with pytest.raises(SettingError, match=text):
        Tiling.from_llava(LLAVA | change, 384, pooled=True)


def test_wrong_use_is_one_line():
    with pytest.raises(SettingError, match="pinpoints have no pixels; list pairs"):
        Tiling(384, "anyres")
    with pytest.raises(SettingError, match="aspect is 'crop'; use squash or pad or anyres"):
        Tiling(384, "crop")
    with pytest.raises(SettingError, match="resample is 'lanczos'"):
        Tiling(384, resample="lanczos")
    with pytest.raises(SettingError, match="pool is 'min'"):
        tiles.pooled_side(4, "min")
    with pytest.raises(SettingError, match="5 tokens of a tile"):
        tiles.pool(torch.zeros(1, 5, 2), "max")
    with pytest.raises(SettingError, match="no vector is given"):
        tiles.merge(torch.zeros(1, 4, 2), None, (9, 9), Tiling(8, newline=True), None)
    with pytest.raises(AssertionError, match="3 tiles for the grid"):
        tiles.merge(torch.zeros(3, 4, 2), (2, 2), (9, 9), Tiling(8), None)
