"""The model: bidirectional, layouts, packing, shift, saving, raw ids."""

import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModel

import mmdiff
from mmdiff.diffusion.attention import LAYOUTS
from mmdiff.errors import InputError
from mmdiff.model import MMDiffModel
from mmdiff.processing import collate, packed_row, prompt_row
from mmdiff.training.batches import pack, separate, with_noise
from mmdiff.training.objective import batch_loss
from mmdiff.training.recipe import Objective
from tests.helpers import TEXT_CONFIG

PLACEHOLDER = -200


def ids(rows=2, cells=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, 250, (rows, cells), generator=generator)


def pixels(n, side=32, seed=0):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


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


# Packing


def pairs(model):
    """Expanded prompts with one picture and answers of two turns, as training makes them."""
    processor = model.processor
    image = [processor.image_token_id] * model.image_tokens
    return [
        ([7, *image, 30, 31, 32], [40, 41, 42, 1]),
        ([7, *image, 33], [43, 1, 1, 1, 1]),
        ([7, *image, 34, 35], [44, 1]),
    ]


def packed_and_separate(model, copies):
    made = []
    image_id, seed = model.processor.image_token_id, 3
    for pictures in (1, 2):
        rows = [pack(pairs(model), image_id, copies, 500, n) for n in range(pictures)]
        split = []
        for n in range(pictures):
            for row in separate(pairs(model), copies, n):
                # `separate` serves the full layout: here the prompt is clean, the picture apart.
                row.copy[: row.prompt] = [0] * row.prompt
                row.segment[: 1 + model.image_tokens] = [0] * (1 + model.image_tokens)
                split.append(row)
        for group in (rows, split):
            owner = torch.arange(pictures).repeat_interleave(len(group) // pictures)
            canvas = collate(group, 1, pixels(pictures), image_id)
            made.append(with_noise(canvas, owner, seed))
    return made


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("weight", ["one", "inverse_p", "elbo"])
@pytest.mark.parametrize("layout", ["prefix", "block"])
@torch.inference_mode()
def test_a_packed_row_equals_separate_rows(model, layout, weight, copies):
    model.config.attention_layout = layout
    for kind in ("answer", "masked"):
        objective = Objective(complementary=copies == 2, weight=weight, denominator=kind)
        one, split, two, both = (
            float(batch_loss(model, batch, objective))
            for batch in packed_and_separate(model, copies)
        )
        assert one == pytest.approx(split, rel=1e-5)
        assert two == pytest.approx(both, rel=1e-5)


@pytest.mark.parametrize("layout", ["prefix", "block"])
@torch.inference_mode()
def test_a_request_is_seen_as_its_packed_training_row_was(model, layout):
    """The same cells, masks and picture give the same logits in training and in decoding."""
    model.config.attention_layout = layout
    image_id, mask = model.processor.image_token_id, model.processor.mask_id
    shared = 1 + model.image_tokens
    turns = [(p[shared:], [mask] * len(a)) for p, a in pairs(model)]
    canvas = collate(
        [packed_row(pairs(model)[0][0][:shared], turns, 1, [0])], 1, pixels(1), image_id
    )
    trained = model.score(canvas, canvas.writable).split([len(a) for _, a in turns])
    for (prompt, answer), logits in zip(pairs(model), trained, strict=True):
        raw = torch.tensor([[7, PLACEHOLDER, *prompt[shared:], *[mask] * len(answer)]])
        writable = torch.zeros(1, len(prompt) + len(answer)).bool()
        writable[:, len(prompt) :] = True
        asked = model(raw, pixel_values=pixels(1), writable=writable).logits[0, len(prompt) :]
        torch.testing.assert_close(asked, logits)


@pytest.mark.parametrize("copies", [1, 2])
@torch.inference_mode()
def test_a_full_layout_pair_equals_single_rows(model, copies):
    model.config.attention_layout = "full"
    rows = separate(pairs(model), copies, 0)
    canvas = collate(rows, 1, pixels(1), model.processor.image_token_id)
    together = model.score(canvas, canvas.writable).split([sum(r.writable) for r in rows])
    for row, logits in zip(rows, together, strict=True):
        plain = dataclasses.replace(row, copy=[0] * len(row.ids), segment=[0] * len(row.ids))
        alone = collate([plain], 1, pixels(1), model.processor.image_token_id)
        torch.testing.assert_close(model.score(alone, alone.writable), logits)


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


# Raw ids


@torch.inference_mode()
def test_raw_placeholders_are_expanded(model):
    n, image = model.image_tokens, model.config.image_token_id
    assert n > 1
    raw = torch.tensor([[7, PLACEHOLDER, 20, 21, 22], [7, 8, PLACEHOLDER, PLACEHOLDER, 23]])
    logits = model(input_ids=raw, pixel_values=pixels(3)).logits
    assert logits.shape[1] == 3 + 2 * n
    short = torch.tensor([[7, *[image] * n, 20, 21, 22]])
    alone = model(input_ids=short, pixel_values=pixels(3)[:1]).logits
    torch.testing.assert_close(logits[:1, -(n + 4) :], alone)
    swapped = model(input_ids=raw, pixel_values=pixels(3)[[0, 2, 1]]).logits
    torch.testing.assert_close(swapped[0], logits[0])
    assert not torch.allclose(swapped[1], logits[1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_generate_does_not_see_padding(model, side):
    row = ids(1, 7)
    pad = ids(1, 3, seed=4)
    parts = [pad, row] if side == "left" else [row, pad]
    valid = [torch.zeros(1, 3), torch.ones(1, 7)][:: 1 if side == "left" else -1]
    for layout in LAYOUTS:
        model.config.attention_layout = layout
        for settings in ({}, {"temperature": 1.0, "block_length": 4, "cache": "prefix"}):
            plain = model.generate(row, **settings)
            padded = model.generate(torch.cat(parts, 1), torch.cat(valid, 1), **settings)
            assert torch.equal(plain.sequences[:, 7:], padded.sequences[:, 10:])
            assert torch.equal(padded.sequences[:, :10], torch.cat(parts, 1))


def test_generate_counts(model):
    out = model.generate(ids(3, 5), max_new_tokens=8, steps=4, stop="none")
    assert out.sequences.shape == (3, 13)
    assert torch.equal(out.sequences[:, :5], ids(3, 5))
    assert out.nfe.tolist() == [4, 4, 4]
    assert out.calls == 4
    ends = (out.sequences[:, 5:] == model.config.eos_token_id).long()
    lengths = [row.index(1) + 1 if 1 in row else 8 for row in ends.tolist()]
    assert out.tokens_per_forward.tolist() == [n / 4 for n in lengths]


def test_generate_fills_a_draft_and_keeps_the_rest(model):
    mask = model.config.mask_token_id
    draft = torch.tensor([[50, mask, 51, mask], [mask, mask, mask, 52]])
    out = model.generate(ids(2, 5), draft_tokens=draft, stop="none")
    answer, given = out.sequences[:, 5:], draft != mask
    assert torch.equal(answer[given], draft[given])
    assert not bool((answer == mask).any())
    assert out.nfe.tolist() == [2, 3]
    assert bool((draft[~given] == mask).all())


def test_generate_with_pictures_equals_the_rows_alone(model):
    raw = torch.tensor([[7, PLACEHOLDER, 20, 21], [7, 8, PLACEHOLDER, 23]])
    settings = {"max_new_tokens": 5, "temperature": 1.0}
    both = model.generate(raw, pixel_values=pixels(2), seed=[4, 5], **settings)
    for i in range(2):
        alone = model.generate(raw[i : i + 1], pixel_values=pixels(2)[i : i + 1], seed=4 + i,
                               **settings)  # fmt: skip
        assert torch.equal(alone.sequences[0], both.sequences[i])


def test_a_mask_id_in_the_prompt_stays(model):
    row = ids(1, 5)
    row[0, 2] = model.config.mask_token_id
    assert torch.equal(model.generate(row, max_new_tokens=3).sequences[:, :5], row)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"input_ids": torch.tensor([[5, 10**6]])}, "outside the vocabulary"),
        ({"input_ids": torch.tensor([[5, -1]])}, "outside the vocabulary"),
        ({"attention_mask": torch.ones(1, 3)}, "differ in shape"),
        ({"pixel_values": pixels(1)}, "1 pictures fill"),
        ({"input_ids": torch.tensor([[PLACEHOLDER, 5]])}, "pictures"),
        ({"input_ids": torch.zeros(1, 0).long()}, "empty"),
        ({"writable": torch.ones(1, 3)}, "writable"),
    ],
)
def test_ids_that_do_not_fit_are_refused(model, arguments, words):
    with pytest.raises(InputError, match=words):
        model(**{"input_ids": torch.tensor([[5, 6]]), **arguments})


def test_a_model_without_eyes_refuses_pictures(model):
    model.config.image_token_id, vision = None, model.vision
    model.vision = None
    try:
        for row in (torch.tensor([[5, 6]]), torch.tensor([[PLACEHOLDER, 5]])):
            with pytest.raises(InputError, match="takes no pictures"):
                model(input_ids=row, pixel_values=pixels(1))
    finally:
        model.vision = vision
