"""Conversations as one example: who sees whom, the same losses and logits as answer by answer."""

import dataclasses

import pytest
import torch

from mmdiff.config import build
from mmdiff.diffusion.attention import Cells, allowed
from mmdiff.errors import InputError, SettingError
from mmdiff.heads.chat import Chat
from mmdiff.heads.run import compose_canvas
from mmdiff.processing import collate, prompt_row, turn_blocks, turns_row
from mmdiff.training.batches import Batches, with_noise
from mmdiff.training.build import settle
from mmdiff.training.objective import batch_loss
from mmdiff.training.packing import encode_turns, pictures_of
from mmdiff.training.recipe import Lora, Recipe
from mmdiff.training.sources import open_source
from tests.training.test_sources import ROWS, llava_folder, recipe

IMAGE = 9


def by_turn(data, **over):
    return recipe(data, validation=f"{data}/train.json", conversation="by_turn", **over)


@pytest.fixture
def talks(tmp_path, model):
    """Four conversations, one of them without a picture, one whose pictures come later."""
    model.config.turn_causal = True
    made = by_turn(llava_folder(tmp_path, ROWS), batch_size=4)
    return open_source(made, processor=model.processor, limit=256), made


# Who sees whom


def test_blocks_of_turns():
    prompt = [1, IMAGE, IMAGE, 2, 3, 4, 5, 6, IMAGE, 7]
    assert turn_blocks(prompt, [4, 7, 10], IMAGE) == [-5, -5, -5, -4, -2, -2, -2, -1, -1, 0]
    assert turn_blocks(prompt[:4], [4], IMAGE) == [-1, -1, -1, 0]
    assert turn_blocks([1, 2], [2], None) == [0, 0]


@pytest.mark.parametrize("copies", [1, 2])
def test_who_sees_whom(copies):
    """Every pair of cells against the rule in words."""
    turns = [[1, IMAGE, 2, 3], [4, 5], [6, IMAGE, IMAGE, 7]]
    prompt = [i for turn in turns for i in turn]
    ends = [4, 6, 10]
    answers = [(4, [20, 21]), (6, [22]), (10, [23, 24, 25])]
    row = turns_row(prompt, turn_blocks(prompt, ends, IMAGE), answers, copies)
    what = []  # (turn, picture?, answer's copy or 0)
    for number, turn in enumerate(turns):
        last = max((i for i, x in enumerate(turn) if x == IMAGE), default=-1)
        what += [(number, i <= last, 0) for i in range(len(turn))]
    for number, (_, answer) in enumerate(answers):
        what += [(number, False, c) for c in range(1, copies + 1) for _ in answer]
    assert row.position == [*range(10), *(4, 5) * copies, *(6,) * copies, *(10, 11, 12) * copies]
    every = Cells.of(collate([row], pad_id=0))
    see = allowed(every, every, "prefix")[0]
    for i, (turn_q, picture_q, copy_q) in enumerate(what):
        for j, (turn_k, picture_k, copy_k) in enumerate(what):
            if copy_k:
                may = (turn_q, copy_q) == (turn_k, copy_k)
            elif copy_q:
                may = turn_k <= turn_q
            else:
                may = turn_k < turn_q or (turn_k == turn_q and (picture_k or not picture_q))
            assert bool(see[i, j]) == may, (i, j)


# The same losses and logits


def answer_by_answer(source, processor, copies, count):
    """A row per answer and copy, its prompt block-causal by turn; whose they are; pictures."""
    rows, owner, pictures = [], [], []
    for index in range(count):
        sample = source.sample(index, 0, 8, "train")
        sizes = [image.size for image in sample.images]
        pairs = encode_turns(sample, processor, 0)
        for n, (turn, (prompt, answer)) in enumerate(zip(sample.turns, pairs, strict=True), 1):
            said = turn.messages(len(sizes))
            ends = processor.turn_ends(prompt, said, sizes)
            shown = range(len(pictures), len(pictures) + pictures_of(said))
            for copy in range(1, copies + 1):
                row = prompt_row(prompt, answer, [False] * len(answer), shown)
                row.writable[row.prompt :] = [True] * len(answer)
                row.block[: row.prompt] = turn_blocks(prompt, ends, processor.image_token_id)
                row.segment[row.prompt :] = [n] * len(answer)
                row.copy[row.prompt :] = [copy] * len(answer)
                rows, owner = [*rows, row], [*owner, index]
        pictures += sample.images
    return rows, owner, pictures


@pytest.mark.parametrize(
    "objective",
    [
        {"complementary": True},
        {"complementary": False, "weight": "inverse_p", "denominator": "masked"},
        {"complementary": True, "weight": "elbo", "denominator": "row"},
        {"complementary": False, "weight": "cart", "denominator": "root"},
    ],
    ids=lambda objective: objective.get("weight", "one"),
)
@torch.no_grad()
def test_the_loss_is_that_of_an_example_per_answer(talks, model, objective):
    source, made = talks
    made = build(Recipe, {**vars(made), "objective": objective})
    processor = model.processor
    together = Batches(source, processor, made, True, "train")[0]
    assert together.canvas.shape[0] == 4
    copies = 1 + objective["complementary"]
    rows, owner, pictures = answer_by_answer(source, processor, copies, 4)
    assert len(rows) == 8 * copies
    image_id = processor.image_token_id
    canvas = collate(rows, processor.end_id, processor.pixels(pictures), image_id)
    apart = with_noise(canvas, torch.tensor(owner), made.seed, made.objective)
    found = [float(batch_loss(model, batch, made.objective)) for batch in (together, apart)]
    assert found[0] == pytest.approx(found[1], rel=1e-7)  # noise and weights are float32


def first_copy(canvas, processor):
    """The canvas with its answers' first copies masked, and where these are."""
    first = canvas.writable & (canvas.copy == 1)
    canvas.ids = torch.where(first, processor.mask_id, canvas.ids)
    canvas.masked = first
    return canvas, first


@torch.inference_mode()
def test_a_chat_has_the_logits_of_its_training(talks, model):
    source, made = talks
    processor = model.processor
    for i in range(4):
        sample = source.sample(i, 0, 8, "train")
        rows = Batches(source, processor, made, True, "train").rows(sample, 0, False)
        pixels = processor.pixels(sample.images) if sample.images else None
        canvas = collate(rows, processor.end_id, pixels, processor.image_token_id)
        trained = model.score(*first_copy(canvas, processor))
        asked = []
        for turn, (_, answer) in zip(sample.turns, encode_turns(sample, processor, 0), strict=True):
            said = turn.messages(len(sample.images))
            example = Chat().compose(processor, list(sample.images[: pictures_of(said)]), said)
            request = compose_canvas(model, processor, [example], len(answer))
            asked.append(model.score(request, request.masked))
        torch.testing.assert_close(trained.sort(0).values, torch.cat(asked).sort(0).values)


@torch.inference_mode()
def test_what_was_said_before_does_not_change_when_the_chat_goes_on(model):
    model.config.turn_causal = True
    said = [
        {"role": "user", "content": "how many?"},
        {"role": "assistant", "content": "two squares"},
        {"role": "user", "content": "and circles?"},
    ]
    seen = []
    for messages in (said[:1], said):
        canvas = compose_canvas(
            model, model.processor, [Chat().compose(model.processor, [], messages)], 4
        )
        seen.append(model.hidden(canvas, model.embed(canvas))[0, : canvas.prompt_length])
    torch.testing.assert_close(seen[1][: len(seen[0])], seen[0])
    model.config.turn_causal = False
    canvas = compose_canvas(model, model.processor, [Chat().compose(model.processor, [], said)], 4)
    other = model.hidden(canvas, model.embed(canvas))[0, : len(seen[0])]
    assert not torch.allclose(other, seen[0])


def test_blocks_of_an_answer_leave_the_prompt_in_its_turns(model):
    model.config.turn_causal = True
    said = [{"role": role, "content": "two"} for role in ("user", "assistant", "user")]
    settings = {"max_new_tokens": 4, "steps": 4, "accept": "schedule", "stop": "none"}
    plain, cached = (
        model.chat(said, block_length=2, cache=cache, **settings) for cache in ("none", "prefix")
    )
    assert plain.ids == cached.ids


# What is recorded, and what is refused


def settings(**over):
    return dataclasses.replace(recipe("tabletop"), **over)


def test_the_config_says_how_a_model_was_trained(model):
    assert settle(settings(), model).conversation == "by_answer"
    assert settle(settings(conversation="by_turn"), model).conversation == "by_turn"
    assert model.config.turn_causal
    assert settle(settings(), model).conversation == "by_turn"
    assert settle(settings(conversation="by_answer"), model).conversation == "by_answer"
    assert not model.config.turn_causal


def test_models_that_cannot_be_trained_by_turn(model):
    with pytest.raises(SettingError, match="adapters cannot change"):
        settle(settings(conversation="by_turn", lora=Lora()), model)
    model.config.attention_layout = "full"
    with pytest.raises(SettingError, match="needs a model with attention_layout: prefix"):
        settle(settings(conversation="by_turn"), model)
    with pytest.raises(SettingError, match=r"without objective\.block"):
        recipe("tabletop", conversation="by_turn", objective={"block": 4})
    assert not model.config.turn_causal


def test_a_template_that_rewrites_earlier_turns(model, monkeypatch):
    last = "{% if loop.last %}<|user|>{% endif %}{{ m['content'] }}"
    monkeypatch.setattr(
        model.processor.tokenizer,
        "chat_template",
        "{% for m in messages %}" + last + "{% endfor %}",
    )
    with pytest.raises(InputError, match="rewrites earlier turns"):
        settle(settings(conversation="by_turn"), model)


def test_turns_that_are_no_conversation_stand_alone(model):
    from mmdiff.data.tabletop_source import Tabletop

    made = recipe("tabletop", conversation="by_turn", turns=2)
    batch = Batches(Tabletop(), model.processor, made, True, "train")[0]
    assert batch.canvas.shape[0] == 3 * 3
    assert len(batch.canvas.features.pixel_values) == 3
    assert len({float(t) for t in batch.time[batch.canvas.writable]}) == 9
