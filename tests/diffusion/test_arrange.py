"""Pairs, clean context and turns: what stands where, and what the model then sees."""

import dataclasses
from itertools import chain

import pytest
import torch

from mmdiff.diffusion.arrange import before, paired, turn_numbers, with_context
from mmdiff.diffusion.corrupt import corrupt
from mmdiff.processing import collate, packed_row, prompt_row
from tests.helpers import pixels

SIZES = [(7, 3), (4, 4), (5, 1)]


def test_a_pair_of_rows_shares_everything_but_its_copy(model):
    image = [model.processor.image_token_id] * model.image_tokens
    rows = [prompt_row([7, *image], [9, 8], [True] * 2, [n]) for n in range(2)]
    canvas = collate(rows, 1, pixels(2), model.processor.image_token_id)
    double = paired(canvas)
    assert double.copy.tolist() == [[1] * canvas.shape[1]] * 2 + [[2] * canvas.shape[1]] * 2
    for field in ("ids", "writable", "valid", "block", "segment", "position"):
        whole = getattr(double, field)
        assert torch.equal(whole[:2], getattr(canvas, field))
        assert torch.equal(whole[2:], getattr(canvas, field))
    with torch.inference_mode():
        embeds = model.embed(double)
        assert torch.equal(embeds[2:], embeds[:2])
        assert torch.equal(embeds[:2], model.embed(canvas))


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(("cells", "size"), SIZES)
@torch.inference_mode()
def test_a_noisy_block_with_clean_context_is_what_decoding_shows(model, cells, size, shift):
    """Every block of [noisy | clean] has the logits of a canvas that ends with it, the blocks
    before it decided."""
    model.config.attention_layout, model.config.shift = "block", shift
    answer, mask = list(range(40, 40 + cells)), model.processor.mask_id
    canvas = collate([packed_row([7, 30], [([31], answer), ([32, 33], answer[:2])], 1)], 1)
    double = with_context(canvas, size)
    masked = double.writable & (double.position % 2 == 0)
    noisy = corrupt(double, masked, mask)
    logits = model.score(noisy, noisy.writable)
    assert len(logits) == cells + 2
    for start in range(0, cells, size):
        stop = min(cells, start + size)
        ids = answer[:start] + [mask if (3 + i) % 2 == 0 else answer[i] for i in range(start, stop)]
        alone = collate([prompt_row([7, 30, 31], ids, [True] * stop)], 1)
        alone.block[:, 3:] = 1 + torch.arange(stop) // size
        # The shared cells lie in segment 0 of the packed row and never see a question.
        alone.segment[:, 2:] = 1
        need = alone.writable & (torch.arange(3 + stop) >= 3 + start)
        torch.testing.assert_close(model.score(alone, need), logits[start:stop])


def test_the_cell_before_of_copies_and_blocks():
    canvas = collate([packed_row([7, 30], [([31], [40, 41, 42]), ([32, 33], [50, 51])], 2)], 1)
    need = canvas.writable
    rows, cells = need.nonzero(as_tuple=True)
    #  7 30 | 31 40 41 42 40 41 42 | 32 33 50 51 50 51
    assert before(canvas, rows, cells).tolist() == [2, 3, 4, 2, 6, 7, 10, 11, 10, 13]
    double = with_context(collate([packed_row([7], [([31], [40, 41, 42, 43, 44])], 1)], 1), 2)
    rows, cells = double.writable.nonzero(as_tuple=True)
    #  7 | 31 40 41 42 43 44 | 40 41 42 43 44: the first cells of later blocks follow clean twins
    assert before(double, rows, cells).tolist() == [1, 2, 8, 4, 10]
    plain = collate([prompt_row([7], [10, 11], [True] * 2), prompt_row([8, 9], [12], [True])], 1)
    rows, cells = plain.valid.nonzero(as_tuple=True)
    assert before(plain, rows, cells).tolist() == (cells - 1).clamp(min=0).tolist()


def test_clean_twins_are_copies_that_nobody_writes():
    rows = [prompt_row([7], [10, 11, 12], [True, True, False]), prompt_row([8, 9], [13], [True])]
    canvas = collate(rows, pad_id=0)
    double = with_context(canvas, 2)
    length = canvas.shape[1]
    assert double.ids[0, length:].tolist() == [10, 11]
    assert double.ids[1, length:][double.valid[1, length:]].tolist() == [13]
    assert not bool(double.writable[:, length:].any() or double.copy[:, length:].any())
    assert double.copy[:, :length].tolist() == canvas.writable.long().tolist()
    assert double.block[0, :length].tolist() == [0, 0, 1, 1, 2]
    assert double.block[0, length:].tolist() == [1, 1]
    assert double.position[0, length:].tolist() == [1, 2]


def test_a_pair_shares_its_clean_twin():
    canvas = collate([packed_row([7], [([8], [10, 11, 12])], copies=2)], pad_id=0)
    double = with_context(canvas, 2)
    assert double.ids[0, canvas.shape[1] :].tolist() == [10, 11, 12]
    assert double.copy[0].tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0]
    assert double.block[0].tolist() == [0, 0, 1, 1, 2, 1, 1, 2, 1, 1, 2]


def test_positions_of_three_axes_go_along():
    canvas = collate([packed_row([7], [([8], [10, 11, 12])], copies=1)], pad_id=0)
    flat = with_context(canvas, 2)
    canvas.position = torch.stack([canvas.position] * 2 + [canvas.position + 5])
    double = with_context(canvas, 2)
    assert torch.equal(double.position, torch.stack([flat.position] * 2 + [flat.position + 5]))
    assert torch.equal(double.block, flat.block)
    assert paired(canvas).position.shape == (3, 2, canvas.shape[1])


def test_pictures_stay_in_their_cells(model):
    image_id = model.processor.image_token_id
    image = [image_id] * model.image_tokens
    rows = [prompt_row([7, *image], [9] * n, [True] * n, [n - 1]) for n in (1, 2)]
    canvas = collate(rows, 1, pixels(2), image_id)
    double = with_context(canvas, 4)
    with torch.inference_mode():
        embeds = model.embed(double)[:, : canvas.shape[1]]
        assert torch.equal(embeds, model.embed(canvas))


def test_canvases_without_an_answer_stay_as_they_are():
    canvas = collate([prompt_row([7, 8], [], [])], pad_id=0)
    double = with_context(canvas, 4)
    for field in dataclasses.fields(canvas):
        value = getattr(canvas, field.name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(double, field.name), value)


HEAD, END, USER, BOT = 1, 2, 3, 4


def test_turns_end_with_the_assistant():
    said = [[0], [HEAD, USER, 9, END], [HEAD, BOT, 9, 9, END], [7],
            [HEAD, USER, END], [HEAD, BOT, END], [0, 0]]  # fmt: skip
    turns = [[0], [0] * 4, [0] * 5, [0], [1] * 3, [1] * 3, [1] * 2]
    ids = torch.tensor([list(chain(*said))])
    assert turn_numbers(ids, HEAD, END, BOT).tolist() == [list(chain(*turns))]
    open_end = torch.tensor([[HEAD, BOT, END, HEAD, USER, 9], [0, 0, 0, 0, 0, HEAD]])
    assert turn_numbers(open_end, HEAD, END, BOT).tolist() == [[0, 0, 0, 1, 1, 1], [0] * 6]
