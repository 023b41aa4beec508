"""Data files as training sources: orders, mixtures, bad rows, conversations in packed rows."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from mmdiff.config import build
from mmdiff.data.readers import fingerprint
from mmdiff.data.recorded import CHUNK, Divided, Mixture, permutation
from mmdiff.errors import DataError, SettingError
from mmdiff.heads.chat import Chat
from mmdiff.heads.run import compose_canvas
from mmdiff.processing import collate
from mmdiff.training.batches import Batches
from mmdiff.training.objective import batch_loss
from mmdiff.training.packing import encode_turns
from mmdiff.training.recipe import Objective, Part, Recipe
from mmdiff.training.sources import open_source
from tests.data.malformed import png, row, talk, write_lines
from tests.helpers import NEW_MODEL, separate_prefix


def recipe(data, **over):
    made = {"model": NEW_MODEL, "data": data, "output": "unused", "max_steps": 4, "batch_size": 3}
    return build(Recipe, {**made, "workers": 0, "row_cells": 60, **over}, "a test")


def llava_folder(folder, rows):
    (folder / "images").mkdir(parents=True)
    for number in range(len(rows)):
        (folder / "images" / f"{number}.png").write_bytes(png(32, seed=number))
    (folder / "train.json").write_text(json.dumps(rows))
    return str(folder)


def plain_rows(count, name="r"):
    return [row(f"{name}{i}", f"{i}.png", f"<image>\nwhat {i}?", f"a {i}") for i in range(count)]


def ids_of(source, indices, split="train", seed=0):
    return [source.name(i, seed, split).split("(")[1][:-1] for i in indices]


def test_each_pass_is_another_order_of_all_rows(tmp_path):
    source = open_source(recipe(llava_folder(tmp_path, plain_rows(20)), validation=0.1))
    passes = [ids_of(source, range(18 * n, 18 * (n + 1))) for n in range(3)]
    assert all(len(set(each)) == 18 for each in passes)
    assert set(passes[0]) == set(passes[1]) and passes[0] != passes[1] != passes[2]
    held = set(ids_of(source, range(2), "validation"))
    assert len(held) == 2 and not held & set(passes[0])
    assert ids_of(source, [40, 3]) == [passes[2][4], passes[0][3]]
    one = source.sample(3, 0, 8, "train")
    number = int(passes[0][3][1:])
    assert one.turns[0].answer == f"a {number}"
    expected = np.asarray(Image.open(tmp_path / "images" / f"{number}.png"))
    np.testing.assert_array_equal(np.asarray(one.images[0]), expected)


def test_rows_with_one_picture_are_held_out_together(tmp_path):
    rows = [row(f"r{i}", f"{i // 4}.png") for i in range(40)]
    source = open_source(recipe(llava_folder(tmp_path, rows), validation=0.3))
    held = set(ids_of(source, range(12), "validation"))
    assert len(held) == 12
    assert all(f"r{4 * (int(name[1:]) // 4) + k}" in held for name in held for k in range(4))
    same = llava_folder(tmp_path / "same", [row(f"r{i}", "0.png") for i in range(3)])
    with pytest.raises(DataError, match="validation=PATH"):
        open_source(recipe(same))


def test_rows_with_one_question_are_held_out_together(tmp_path):
    rows = [row(f"r{i}", f"{i}.png", f"<image>\nis it {i // 4}?") for i in range(40)]
    folder = llava_folder(tmp_path, rows)
    source = open_source(recipe(folder, validation=0.3, validation_by="question"))
    held = set(ids_of(source, range(12), "validation"))
    assert len(held) == 12
    assert all(f"r{4 * (int(name[1:]) // 4) + k}" in held for name in held for k in range(4))
    same = llava_folder(tmp_path / "same", [row(f"r{i}", f"{i}.png") for i in range(3)])
    with pytest.raises(DataError, match="all rows have one question"):
        open_source(recipe(same, validation_by="question"))


def test_a_folder_has_the_fingerprint_of_its_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.tar").write_bytes(name.encode())
    before = fingerprint(tmp_path)
    assert before == fingerprint(tmp_path) != fingerprint(tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(b"c")
    assert fingerprint(tmp_path) != before


def test_skipping_uses_exactly_the_good_rows(tmp_path):
    path, wanted = write_lines(tmp_path / "bad", 60, 120)
    other = llava_folder(tmp_path / "held", plain_rows(3))
    over = {"validation": f"{other}/train.json"}
    with pytest.raises(DataError) as error:
        open_source(recipe(str(path), **over))
    text = str(error.value)
    assert "120 of 180 rows are bad" in text and "mmdiff check" in text and "\n" not in text
    source = open_source(recipe(str(path), bad_rows="skip", **over))
    used = {
        source.name(i, 0, "train").split(" (")[0].removeprefix("train.jsonl ") for i in range(60)
    }
    assert used == {place for place, kind in wanted.items() if not kind}
    assert "120 of 180 rows are bad" in source.left_out[0]
    assert ids_of(source, range(3), "validation") != []
    for i in range(60):
        assert source.sample(i, 0, 8, "train").turns


def test_a_file_without_good_rows(tmp_path):
    rows = [row("a", "no.png"), row("b", "no.png")]
    with pytest.raises(DataError, match=r"2 of 2 rows are bad \(missing_image 2\)"):
        open_source(recipe(llava_folder(tmp_path, rows), bad_rows="skip"))
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(DataError, match="holds no rows"):
        open_source(recipe(str(tmp_path)))


def test_a_picture_that_is_gone_stops_the_run(tmp_path):
    source = open_source(recipe(llava_folder(tmp_path, plain_rows(4))))
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"train.json row \d has changed since it was checked"):
        source.sample(0, 0, 8, "train")


def test_mixtures(tmp_path):
    folders = [llava_folder(tmp_path / name, plain_rows(30, name)) for name in "ab"]
    parts = [
        {"data": folders[0], "weight": 3, "take": "first:10"},
        {"data": folders[1], "weight": 1, "take": "random:20"},
        {"data": "tabletop", "weight": 1},
    ]
    source = open_source(recipe(parts, validation=0.1))
    assert isinstance(source, Divided) and isinstance(source.train, Mixture)
    names = [source.name(i, 0, "train") for i in range(4000)]
    counts = Counter(("scene" if "scene" in n else n.split("(")[1][0]) for n in names)
    assert counts["a"] == pytest.approx(2400, abs=100)
    assert counts["b"] == pytest.approx(800, abs=100)
    # Every part is gone through pass by pass.
    first = [n for n in names if "(a" in n]
    assert all(len(set(first[i : i + 9])) == 9 for i in range(0, 900, 9))
    assert {n.split("(")[1] for n in first} <= {f"a{i})" for i in range(10)}
    assert len({n for n in names if "(b" in n}) == 18
    scenes = [int(n.split()[1]) for n in names if "scene" in n]
    assert scenes == list(range(len(scenes)))
    sample = source.sample(4001, 0, 2, "train")
    assert sample.index == 4001


def test_a_mixture_counts_on_behind_a_chunk():
    mixture = Mixture(("a", "b"), (1.0, 2.0))
    near = [mixture.place(i, 5) for i in range(CHUNK - 50, CHUNK + 50)]
    seen = Counter(mixture.place(i, 5)[0] for i in range(0, CHUNK - 50, 4096))
    assert set(seen) == {0, 1}
    for part in (0, 1):
        numbers = [n for p, n in near if p == part]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    total = sum(n for n in (max(n for p, n in near if p == part) + 1 for part in (0, 1)))
    assert total == CHUNK + 50


def test_without_weights_a_mixture_is_its_rows(tmp_path):
    folders = [
        llava_folder(tmp_path / name, plain_rows(n, name)) for name, n in (("a", 4), ("b", 12))
    ]
    held = f"{folders[0]}/train.json"
    source = open_source(recipe([{"data": f} for f in folders], validation=held))
    assert source.train.weights == (4.0, 12.0)
    with pytest.raises(SettingError, match="needs a weight"):
        open_source(recipe([{"data": "tabletop"}, {"data": folders[0]}], validation=held))


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"data": "x", "weight": 0}, "weight must be above 0"),
        ({"data": "x", "take": "last:3"}, "first:N or random:N"),
        ({"data": "x", "takes": "all"}, "Did you mean take"),
    ],
)
def test_a_wrong_part(part, words):
    with pytest.raises(SettingError, match=words):
        recipe([part])


def test_more_rows_than_there_are(tmp_path):
    folder = llava_folder(tmp_path, plain_rows(5))
    with pytest.raises(DataError, match="only 5 rows are good"):
        open_source(recipe([{"data": folder, "take": "first:6"}]))
    with pytest.raises(SettingError, match="anchor_steps"):
        open_source(recipe(folder, anchor_steps=1, objective={"anchors": 0.5}))
    with pytest.raises(SettingError, match="row_parts"):
        open_source(recipe(folder, row_parts=2))
    assert Part("x").take == "all"


def test_a_permutation_is_one():
    orders = [permutation(50, seed, turn).tolist() for seed, turn in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(map(tuple, orders))) == 3


ROWS = [
    talk("talk", ("human", "<image> how many?"), ("gpt", "a red circle"), ("human", "and?"),
         ("gpt", "a blue square"), ("human", "more?"), ("gpt", "no"), image="0.png"),
    row("words", None, "how are you?", "a green star"),
    row("two", ["1.png", "2.png"], "<image> or <image>: which?", "a blue square"),
    talk("later", ("system", "be brief"), ("human", "hello"), ("gpt", "a star"),
         ("human", "<image> one"), ("gpt", "a circle"), ("human", "<image> two"),
         ("gpt", "two squares"), images=["1.png", "0.png"]),
]  # fmt: skip


@pytest.fixture
def talks(tmp_path, model):
    folder = llava_folder(tmp_path, ROWS)
    made = recipe(folder, validation=f"{folder}/train.json", batch_size=4)
    return open_source(made, processor=model.processor, limit=256), made


def test_turns_hold_what_was_said_before(talks):
    source, _ = talks
    by_name = {source.name(i, 0, "train"): source.sample(i, 0, 8, "train") for i in range(4)}
    later = next(sample for name, sample in by_name.items() if "later" in name)
    assert [len(turn.messages(2)) for turn in later.turns] == [2, 4, 6]
    assert [turn.answer for turn in later.turns] == ["a star", "a circle", "two squares"]
    assert later.turns[2].messages(2)[2] == {"role": "assistant", "content": "a star"}


@pytest.mark.parametrize("row_cells", [25, 60, 200])
@pytest.mark.parametrize("copies", [1, 2])
@torch.no_grad()
def test_conversations_in_packed_rows_equal_separate_rows(talks, model, copies, row_cells):
    source, made = talks
    objective = {"complementary": copies == 2}
    made = build(Recipe, {**vars(made), "row_cells": row_cells, "objective": objective})
    processor = model.processor
    batch = Batches(source, processor, made, True, "train")[0]
    rows, pictures, answers = [], [], 0
    for i in range(4):
        sample = source.sample(i, 0, 8, "train")
        pairs = encode_turns(sample, processor, 0)
        answers += sum(len(answer) for _, answer in pairs)
        for turn, pair in zip(sample.turns, pairs, strict=True):
            parts = [p for m in turn.messages(9) for p in m["content"] if isinstance(p, dict)]
            shown = sum(part["type"] == "image" for part in parts)
            last = max(
                (n for n, x in enumerate(pair[0]) if x == processor.image_token_id), default=-1
            )
            alone = separate_prefix([pair], copies, 0, last + 1)
            for each in alone:
                each.images = list(range(len(pictures), len(pictures) + shown))
            rows += alone
        pictures += sample.images
    assert int(batch.canvas.writable.sum()) == answers * copies
    assert len(batch.canvas.features.pixel_values) == len(pictures) == 5
    # The same answers: scored with everything masked, in both arrangements.
    canvas = collate(rows, processor.end_id, processor.pixels(pictures), processor.image_token_id)
    found = []
    for each in (batch.canvas, canvas):
        each.masked = each.writable
        logits = model.score(each, each.writable).log_softmax(-1)
        said = logits.gather(1, each.ids[each.writable][:, None])[:, 0]
        found.append(said.sort().values)
    torch.testing.assert_close(*found)
    # Every answer has a time of its own.
    key = [(int(t * 1e6), int(c)) for t, c in zip(batch.time[batch.canvas.writable],
           batch.canvas.copy[batch.canvas.writable], strict=True)]  # fmt: skip
    assert len(set(key)) == 8 * copies


@torch.inference_mode()
def test_a_chat_has_the_logits_of_its_training(talks, model):
    source, made = talks
    processor = model.processor
    for i in range(4):
        sample = source.sample(i, 0, 8, "train")
        dataset = Batches(source, processor, made, True, "train")
        canvas = collate(
            dataset.rows(sample, 0, False),
            processor.end_id,
            processor.pixels(sample.images) if sample.images else None,
            processor.image_token_id,
        )
        first = canvas.writable & (canvas.copy == 1)
        keep = canvas.copy < 2
        canvas.valid = canvas.valid & keep
        canvas.ids = torch.where(first, processor.mask_id, canvas.ids)
        canvas.masked = first
        trained = model.score(canvas, first)
        asked = []
        for turn, (_, answer) in zip(sample.turns, encode_turns(sample, processor, 0), strict=True):
            messages = turn.messages(len(sample.images))
            parts = [p for m in messages for p in m["content"] if isinstance(p, dict)]
            shown = sum(part["type"] == "image" for part in parts)
            example = Chat().compose(processor, list(sample.images[:shown]), messages)
            request = compose_canvas(model, processor, [example], len(answer))
            asked.append(model.score(request, request.masked))
        logits = torch.cat(asked)
        torch.testing.assert_close(trained.sort(0).values, logits.sort(0).values)


def test_text_alone_trains(tmp_path, model):
    rows = [row(f"r{i}", None, f"how {i}?", "fine") for i in range(6)]
    folder = llava_folder(tmp_path, rows)
    made = recipe(folder)
    source = open_source(made, processor=model.processor, limit=256)
    for packed in (True, False):
        batch = Batches(source, model.processor, made, packed, "train")[0]
        assert batch.canvas.features is None
        assert torch.isfinite(batch_loss(model, batch, Objective()))


def test_one_answer_at_random(talks, model, tmp_path):
    folder = str(tmp_path)
    held = f"{folder}/train.json"
    source = open_source(recipe(folder, validation=held, answers="random_one"))
    drawn = Counter()
    for i in range(400):
        sample = source.sample(i, 0, 8, "train")
        assert len(sample.turns) == 1
        if "talk" in source.name(i, 0, "train"):
            drawn[sample.turns[0].answer] += 1
    assert set(drawn) == {"a red circle", "a blue square", "no"}
    assert min(drawn.values()) > 20


def test_rows_too_long_for_the_model_are_bad_rows(tmp_path, model):
    rows = [*plain_rows(3), row("long", "0.png", "<image> " + "how many? " * 80)]
    folder = llava_folder(tmp_path, rows)
    with pytest.raises(DataError, match="too_long 1"):
        open_source(recipe(folder), processor=model.processor, limit=256)
    source = open_source(recipe(folder, bad_rows="skip"), processor=model.processor, limit=256)
    assert "long" not in ids_of(source, range(8)) + ids_of(source, range(3), "validation")
    assert source.left_out and open_source(recipe(folder)).left_out == ()
