"""The model: bidirectional, layouts, padding, shift, saving."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

import mmdiff
from mmdiff.diffusion.attention import LAYOUTS
from mmdiff.model import MMDiffModel
from mmdiff.processing import collate, prompt_row
from tests.helpers import PLACEHOLDER, TEXT_CONFIG, ids, pixels


def use_kernel(model, name, monkeypatch):
    monkeypatch.setattr(model.backbone.config, "_attn_implementation", name)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@torch.inference_mode()
def test_the_first_cell_sees_the_last(model, kernel, monkeypatch):
    use_kernel(model, kernel, monkeypatch)
    row = ids()
    before = model(input_ids=row).logits
    row[:, -1] = 9
    after = model(input_ids=row).logits
    assert before.shape == (2, 10, model.backbone.config.vocab_size)
    assert bool(((before - after).abs().amax(-1) > 1e-6).all())


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", ["prefix", "block"])
@torch.inference_mode()
def test_the_prompt_never_sees_the_answer(model, layout, kernel, monkeypatch):
    use_kernel(model, kernel, monkeypatch)
    model.config.attention_layout = layout
    row, answer = ids(), (torch.arange(10) >= 6).expand(2, 10)
    before = model(input_ids=row, writable=answer).logits
    row[:, 6:] = 9
    after = model(input_ids=row, writable=answer).logits
    assert torch.equal(before[:, :6], after[:, :6])
    assert bool(((before - after)[:, 6:].abs().amax(-1) > 1e-6).all())
    row[:, 0] = 9
    assert bool(((model(input_ids=row, writable=answer).logits - after).abs().amax(-1) > 0).all())


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.inference_mode()
def test_eager_equals_sdpa(model, layout, monkeypatch):
    model.config.attention_layout = layout
    row, valid = ids(), torch.ones(2, 10)
    valid[1, :3] = 0
    answer = (torch.arange(10) >= 6).expand(2, 10)
    runs = []
    for kernel in ("sdpa", "eager"):
        use_kernel(model, kernel, monkeypatch)
        runs.append(model(input_ids=row, attention_mask=valid, writable=answer).logits)
    torch.testing.assert_close(*[run[valid.bool()] for run in runs], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.inference_mode()
def test_padding_changes_nothing(model, layout, side):
    model.config.attention_layout = layout
    row, answer = ids(1, 7), (torch.arange(7) >= 4)[None]
    alone = model(input_ids=row, writable=answer).logits
    left = 3 if side == "left" else 0
    padded, valid, where = ids(1, 10, seed=5), torch.zeros(1, 10), torch.zeros(1, 10).bool()
    padded[:, left : left + 7], valid[:, left : left + 7] = row, 1
    where[:, left : left + 7] = answer
    got = model(input_ids=padded, attention_mask=valid, writable=where).logits
    torch.testing.assert_close(got[:, left : left + 7], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@torch.inference_mode()
def test_narrow_types_stay_finite_with_padding(checkpoint, dtype, kernel):
    small = mmdiff.load(checkpoint, dtype=dtype)
    small.backbone.config._attn_implementation = kernel
    valid = torch.ones(2, 10)
    valid[0, :4], valid[1, :] = 0, 0
    valid[1, 9] = 1
    logits = small(input_ids=ids(), attention_mask=valid, pixel_values=None).logits
    assert logits.dtype == dtype
    assert bool(logits.isfinite().all())


@torch.inference_mode()
def test_score_is_forward_at_the_needed_cells(model):
    for shift in (False, True):
        model.config.shift = shift
        rows = [prompt_row([20, 21, 22], [30, 31], [True, True]), prompt_row([23], [33], [True])]
        canvas = collate(rows, 1)
        need = canvas.masked.clone()
        need[0, 0] = True
        logits = model(canvas.ids, canvas.valid, writable=canvas.writable).logits
        torch.testing.assert_close(model.score(canvas, need), logits[need])


@torch.inference_mode()
def test_a_shifted_model_scores_each_cell_from_the_one_before(model):
    row = ids()
    plain = model(input_ids=row).logits
    model.config.shift = True
    shifted = model(input_ids=row).logits
    torch.testing.assert_close(shifted[:, 0], plain[:, 0])
    torch.testing.assert_close(shifted[:, 1:], plain[:, :-1])


# Files


def plain_config(model):
    return {k: v for k, v in model.config.to_dict().items() if k != "_name_or_path"}


@torch.inference_mode()
def test_save_and_load(checkpoint, tmp_path):
    first = mmdiff.load(checkpoint)
    row, picture = torch.tensor([[7, PLACEHOLDER, 20, 21]]), pixels(1)
    before = first(input_ids=row, pixel_values=picture).logits
    first.save_pretrained(tmp_path / "again")
    loaded = [
        mmdiff.load(tmp_path / "again"),
        MMDiffModel.from_pretrained(tmp_path / "again"),
        AutoModel.from_pretrained(tmp_path / "again"),
    ]
    for other in loaded:
        assert torch.equal(other.eval()(input_ids=row, pixel_values=picture).logits, before)
        assert plain_config(other) == plain_config(first)
        assert other.processor.encode("a red circle") == first.processor.encode("a red circle")
    config = AutoConfig.from_pretrained(tmp_path / "again")
    assert config.model_type == "mmdiff"
    assert config.text_config["hidden_size"] == TEXT_CONFIG["hidden_size"]
    fresh = AutoModel.from_config(config)
    assert {n: p.shape for n, p in fresh.named_parameters()} == {
        n: p.shape for n, p in first.named_parameters()
    }


def test_the_attention_kernel_can_be_chosen_when_loading(checkpoint):
    loaded = MMDiffModel.from_pretrained(checkpoint, attn_implementation="eager")
    assert loaded.backbone.config._attn_implementation == "eager"


def test_prompt_cache_is_exact_for_prefix_and_block(model):
    for layout, exact in (("full", False), ("prefix", True), ("block", True)):
        model.config.attention_layout = layout
        assert model.config.prompt_cache_exact is exact
