"""Stock decoders run bidirectionally, and the cache that writes into windows."""

import pytest
import torch

from mmdiff.backbone import KeyValueCache, build_decoder, run_decoder
from mmdiff.errors import SettingError
from tests.helpers import TEXT_CONFIG

KINDS = ["llama", "qwen2", "qwen3"]


def decoder(kind="llama", attention="sdpa"):
    torch.manual_seed(0)
    return build_decoder({**TEXT_CONFIG, "model_type": kind, "vocab_size": 50}, attention).eval()


def inputs(cells=9, rows=2):
    generator = torch.Generator().manual_seed(1)
    embeds = torch.randn(rows, cells, TEXT_CONFIG["hidden_size"], generator=generator)
    return embeds, torch.arange(cells).expand(rows, cells)


def zeros(rows, queries, keys):
    return torch.zeros(rows, 1, queries, keys)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_every_cell_sees_every_cell_when_nothing_is_masked(kind, attention):
    embeds, position = inputs()
    model = decoder(kind, attention)
    before = run_decoder(model, embeds, position, None)
    embeds[:, -1] += 1
    after = run_decoder(model, embeds, position, None)
    assert bool(((before - after).abs().amax(-1) > 1e-5).all())


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_no_mask_equals_a_mask_of_zeros_and_eager_equals_sdpa(kind):
    embeds, position = inputs()
    runs = [
        run_decoder(decoder(kind, attention), embeds, position, mask)
        for attention in ("sdpa", "eager")
        for mask in (None, zeros(2, 9, 9))
    ]
    for other in runs[1:]:
        torch.testing.assert_close(runs[0], other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.inference_mode()
def test_the_mask_hides(attention):
    embeds, position = inputs()
    mask = zeros(2, 9, 9)
    mask[..., 6:] = -6e4
    model = decoder(attention=attention)
    before = run_decoder(model, embeds, position, mask)
    embeds[:, 6:] += 1
    after = run_decoder(model, embeds, position, mask)
    assert torch.equal(before[:, :6], after[:, :6])
    short = run_decoder(model, embeds[:, :6], position[:, :6], None)
    torch.testing.assert_close(after[:, :6], short, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_positions_are_used():
    embeds, position = inputs()
    model = decoder()
    base = run_decoder(model, embeds, position, None)
    moved = run_decoder(model, embeds, position + 7, None)
    spread = run_decoder(model, embeds, position * 3, None)
    torch.testing.assert_close(base, moved, rtol=1e-4, atol=1e-4)  # rotary: relative
    assert not torch.allclose(base, spread, atol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("masked", [False, True])
@torch.inference_mode()
def test_cached_windows_equal_the_whole(attention, masked):
    """Block-causal windows of 4, 3 and 2 cells, one after the other, and the last one twice."""
    embeds, position = inputs()
    model = decoder(attention=attention)
    block = torch.tensor([0] * 4 + [1] * 3 + [2] * 2)
    mask = torch.where(block[None, :] > block[:, None], -6e4, 0.0).expand(2, 1, 9, 9)
    whole = run_decoder(model, embeds, position, mask)
    cache = KeyValueCache(9)
    for start, stop in ((0, 4), (4, 7), (7, 9), (7, 9)):
        window = zeros(2, stop - start, stop) if masked else None
        cache.window(start, stop)
        columns = slice(start, stop)
        part = run_decoder(model, embeds[:, columns], position[:, columns], window, cache)
        torch.testing.assert_close(part, whole[:, columns], rtol=1e-4, atol=1e-5)


def test_the_cache_holds_what_was_written():
    cache = KeyValueCache(6)
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(3, 2, 4, 5, generator=generator)
    keys, values = cache.window(0, 4).update(first, first + 1, 0)
    assert torch.equal(keys, first) and torch.equal(values, first + 1)
    second = torch.randn(3, 2, 2, 5, generator=generator)
    keys, values = cache.window(4, 6).update(second, second + 1, 0)
    assert torch.equal(keys, torch.cat([first, second], 2))
    keys, _ = cache.window(3, 5).update(second, second, 0)  # written over
    assert torch.equal(keys, torch.cat([first[:, :, :3], second], 2))
    assert cache.get_seq_length() == 3
    assert cache.get_mask_sizes(2) == (5, 0)
    cache.select(torch.tensor([2, 0]))
    assert torch.equal(cache.keys[0][:, :, :3], first[[2, 0], :, :3])
    assert cache.values[0].shape == (2, 2, 6, 5)


def test_a_config_without_a_kind():
    with pytest.raises(SettingError, match="text_config has no model_type"):
        build_decoder({"hidden_size": 8})


def test_a_kernel_that_cannot_take_the_mask_is_refused():
    embeds, position = inputs()
    model = decoder()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(SettingError, match="attention='sdpa'"):
        run_decoder(model, embeds, position, zeros(2, 9, 9))
