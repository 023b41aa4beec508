"""Messages and pictures -> ids -> rows -> a canvas."""

import json

import pytest
import torch
from PIL import Image

from mmdiff.errors import CheckpointError, InputError
from mmdiff.processing import (
    ImageSettings,
    Processor,
    collate,
    packed_row,
    part_picture,
    prompt_row,
)

SPECIAL = ("<|end|>", "<|mask|>", "<|image|>", "<|user|>", "<|assistant|>")
PAD = 1


@pytest.fixture
def processor(model):
    return model.processor


def user(*parts):
    """A user turn of texts and pictures (None)."""
    content = [{"type": "image"} if p is None else {"type": "text", "text": p} for p in parts]
    return [{"role": "user", "content": content}]


def special(processor, *tokens):
    return [processor.tokenizer.convert_tokens_to_ids(t) for t in tokens]


# Words


@pytest.mark.parametrize("token", SPECIAL)
def test_a_typed_special_token_is_plain_text(processor, token):
    text = f"what is {token}?"
    ids = processor.prompt_ids([{"role": "user", "content": text}])
    opened, closed = special(processor, "<|user|>", "<|assistant|>")
    assert ids == [opened, *processor.encode(text), closed]
    assert not set(ids[1:-1]) & set(special(processor, *SPECIAL))
    assert processor.decode(ids[1:-1]) == text


@pytest.mark.parametrize(
    "parts",
    [
        ("<|ma", "sk|>"),
        ("<", "|image", "|>"),
        (None, "<|im", "age|>"),
        ("<|MASK|>",),
        ("\ue0000\ue001", " and <|mask|>"),
        ("\ue000",),
    ],
)
def test_no_way_of_writing_makes_a_special_token(processor, parts):
    words = "".join(part for part in parts if part is not None)
    ids = processor.prompt_ids(user(*parts))
    opened, picture, closed = special(processor, "<|user|>", "<|image|>", "<|assistant|>")
    pictures = [picture] * parts.count(None)
    assert ids == [opened, *pictures, *processor.encode(words), closed]


def test_a_conversation_goes_through_the_template(processor):
    messages = [
        {"role": "user", "content": "how many circles are there?"},
        {"role": "assistant", "content": "<|end|> no"},
        {"role": "user", "content": "and <|user|>?"},
    ]
    opened, closed, end = special(processor, "<|user|>", "<|assistant|>", "<|end|>")
    words = [processor.encode(m["content"]) for m in messages]
    assert processor.prompt_ids(messages) == [
        *(opened, *words[0]),
        *(closed, *words[1], end),
        *(opened, *words[2], closed),
    ]


def test_decoding_stops_at_the_end_of_text(processor):
    ids = processor.encode("a red circle")
    assert processor.decode([*ids, processor.end_id, *ids]) == "a red circle"
    assert processor.decode([]) == ""


# Pictures


def test_a_picture_takes_its_cells_and_a_typed_placeholder_none(processor):
    ids = processor.prompt_ids(user(None, "a <|image|> and", None))
    image, tokens = processor.image_token_id, processor.image.tokens
    assert ids.count(image) == 2
    wide = processor.expand(ids)
    assert wide.count(image) == 2 * tokens > 2
    assert len(wide) == len(ids) + 2 * (tokens - 1)
    assert [i for i in wide if i != image] == [i for i in ids if i != image]


def test_a_model_without_eyes_refuses_a_picture(processor):
    blind = Processor(processor.tokenizer, ImageSettings())
    assert blind.prompt_ids(user("a")) == processor.prompt_ids(user("a"))
    with pytest.raises(InputError, match="takes no pictures"):
        blind.prompt_ids(user(None, "a"))


def test_pixels_are_scaled_by_mean_and_deviation(processor):
    side = processor.image.size
    pictures = [Image.new("RGB", size, colour) for size, colour in
                (((side, side), "white"), ((side * 3, 7), (255, 0, 51)))]  # fmt: skip
    values = processor.pixels(pictures)
    assert values.shape == (2, 3, side, side)
    assert values.dtype == torch.float32
    mean, std = torch.tensor(processor.image.mean), torch.tensor(processor.image.std)
    torch.testing.assert_close(values[0, :, 0, 0], (1 - mean) / std)
    torch.testing.assert_close(values[1, :, 3, 5], (torch.tensor([1, 0, 0.2]) - mean) / std)


# Rows


def test_a_packed_answer_stands_where_a_single_row_has_it():
    shared, pairs = [7, 2, 2, 2], [([30, 31], [40, 41, 1]), ([32], [42, 1])]
    for copies in (1, 2):
        row = packed_row(shared, pairs, copies, [0])
        number = torch.tensor(row.segment)
        for segment, (prompt, answer) in enumerate(pairs, start=1):
            alone = prompt_row([*shared, *prompt], answer, [True] * len(answer))
            for copy in range(1, copies + 1):
                mine = (number == 0) | (number == segment)
                mine &= (torch.tensor(row.copy) == 0) | (torch.tensor(row.copy) == copy)
                for name in ("ids", "position", "block", "writable"):
                    values = torch.tensor(getattr(row, name))
                    assert values[mine].tolist() == getattr(alone, name), name
        assert row.prompt == 0
        assert row.masked == [False] * len(row.ids)


def test_prompts_are_padded_on_the_left_and_answers_on_the_right():
    rows = [prompt_row([20, 21, 22], [30], [True]), prompt_row([23], [31, 32], [True, False])]
    canvas = collate(rows, PAD)
    assert canvas.prompt_length == 3
    assert canvas.ids.tolist() == [[20, 21, 22, 30, PAD], [PAD, PAD, 23, 31, 32]]
    assert canvas.valid.long().tolist() == [[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert canvas.position.tolist() == [[0, 1, 2, 3, 0], [0, 0, 0, 1, 2]]
    assert canvas.masked.long().tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 1, 0]]
    assert torch.equal(canvas.masked, canvas.writable)
    assert canvas.block.tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert canvas.features is None
    assert collate(rows, PAD, torch.zeros(0, 3, 4, 4), 2).features is None


def test_every_picture_fills_its_own_cells():
    """Two cells a picture; the second row shows two, one of them the first row's."""
    image = 2
    rows = [
        prompt_row([7, image, image, 20], [30], [True], [1]),
        prompt_row([image, image, 8, image, image], [30, 31], [True, False], [0, 1]),
    ]
    canvas = collate(rows, PAD, torch.zeros(2, 3, 4, 4), image)
    width = canvas.shape[1]
    filled = [divmod(cell, width) for cell in canvas.features.cells.tolist()]
    # The first row is padded by one.
    assert filled == [(0, 2), (0, 3), (1, 0), (1, 1), (1, 3), (1, 4)]
    assert canvas.features.source.tolist() == [2, 3, 0, 1, 2, 3]


def test_pictures_that_do_not_fit_are_refused():
    row = prompt_row([7, 2, 2, 2], [30], [True], [0, 1])
    with pytest.raises(InputError, match="2 pictures do not fit the 3 image cells"):
        collate([row], PAD, torch.zeros(2, 3, 4, 4), 2)


def test_parting_the_picture():
    image = 2
    rows = [
        prompt_row([7, image, 20, image, 21], [30], [True], [0, 1]),
        prompt_row([8, image], [30, 31], [True, True], [0]),
        prompt_row([22, 23], [30], [True]),
    ]
    canvas = collate(rows, PAD, torch.zeros(2, 3, 4, 4), image)
    part_picture(canvas)
    assert canvas.segment.tolist() == [
        [0, 0, 0, 0, 1, 1, 1],
        [0, 0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 0, 0],
    ]
    plain = collate(rows[2:], PAD)
    part_picture(plain)
    assert not bool(plain.segment.any())


# Files


def test_save_and_load(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = Processor.from_pretrained(tmp_path)
    assert again.image_token_id == processor.image_token_id
    assert (again.mask_id, again.end_id) == (processor.mask_id, processor.end_id)
    assert again.image.tokens == processor.image.tokens
    messages = user(None, "what is <|mask|>?")
    assert again.prompt_ids(messages) == processor.prompt_ids(messages)
    picture = Image.new("RGB", (50, 40), "teal")
    assert torch.equal(again.pixels([picture]), processor.pixels([picture]))


@pytest.mark.parametrize("settings", ["", "[]", "{}", '{"image": {"sise": 3}}', '{"image": 3}'])
def test_broken_files_are_one_line(processor, tmp_path, settings):
    processor.save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(settings)
    with pytest.raises(CheckpointError, match="the processor files cannot be read"):
        Processor.from_pretrained(tmp_path)


def test_a_missing_tokenizer_is_one_line(processor, tmp_path):
    settings = {"image": {"size": 32}, "text": {}}
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="the processor files cannot be read"):
        Processor.from_pretrained(tmp_path)
