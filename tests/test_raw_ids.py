"""Raw ids in: placeholders, padding, drafts, and what is refused."""

import pytest
import torch

from mmdiff.diffusion.attention import LAYOUTS
from mmdiff.errors import InputError
from tests.helpers import PLACEHOLDER, ids, pixels


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


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_generate_does_not_see_padding(model, side, shift):
    model.config.shift = shift
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


@pytest.mark.parametrize("apart", [True, False])
def test_right_padded_prompts_with_pictures(model, apart):
    """The pictures stay in their cells when a row's padding moves."""
    model.config.picture_apart, model.config.shift = apart, True
    rows = [[7, PLACEHOLDER, 20, 21, 0, 0], [7, 8, PLACEHOLDER, 23, 24, 25]]
    valid = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    settings = {"max_new_tokens": 5, "temperature": 1.0}
    both = model.generate(torch.tensor(rows), valid, pixels(2), **settings)
    for i, length in enumerate((4, 6)):
        row, picture = torch.tensor([rows[i][:length]]), pixels(2)[i : i + 1]
        alone = model.generate(row, pixel_values=picture, **settings)
        assert torch.equal(alone.sequences[0, -5:], both.sequences[i, -5:])


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


@pytest.mark.parametrize("apart", [True, False])
def test_generate_with_pictures_equals_the_rows_alone(model, apart):
    model.config.picture_apart = apart
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
