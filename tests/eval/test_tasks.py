"""Rows of every benchmark: what is asked, what counts, and what is wrong with bad ones."""

import io
import json

import pytest
from PIL import Image

from mmdiff.errors import DataError, SettingError
from mmdiff.eval.tasks import base
from mmdiff.eval.tasks.base import TASKS, BadQuestion, Judged, make
from mmdiff.eval.tasks.source import open_source, questions


def png(colour="red", size=(40, 40)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


PICTURE = {"bytes": png(), "path": None}
CHOICE = {
    "id": "validation_Art_Theory_1",
    "question": "Who painted <image 1>?",
    "options": "['Rembrandt', 'Vermeer']",
    "answer": "B",
    "question_type": "multiple-choice",
    "image_1": PICTURE,
}
OPEN = {
    **CHOICE,
    "id": "validation_Math_2",
    "question": "<image 2> and <image 1>?",
    "image_2": PICTURE,
    "options": "[]",
    "answer": "['24/7', '3.429']",
    "question_type": "open",
}
PEOPLE = ["red"] * 7 + ["blue"] * 3
# A row of each benchmark, an answer to it and its score.
ROWS = {
    "mmmu": (CHOICE, "(B)", 1),
    "mmmu_pro": (CHOICE | {"id": "test_Math_7", "question_type": None}, "so. Answer: B", 1),
    "vqav2": (
        {"question_id": 7, "question": "Which?", "image": PICTURE, "answers": PEOPLE},
        "Blue.",
        0.9,
    ),
    "textvqa": (
        {"question_id": 7, "question": "Which?", "image": PICTURE, "answers": PEOPLE},
        "the red",
        1,
    ),
    "chartqa": (
        {"question": "How many?", "answer": "100", "type": "human_test", "image": PICTURE},
        "104",
        1,
    ),
    "docvqa": (
        {"questionId": 1, "question": "?", "answers": ["forty"], "image": PICTURE},
        "forth",
        0.8,
    ),
    "pope": (
        {"id": 3, "question": "A cat?", "answer": "no", "image": PICTURE, "category": "random"},
        "No",
        1,
    ),
    "mme": (
        {"question_id": "a.png", "question": "A cat? Please answer yes or no.", "answer": "Yes",
         "category": "existence", "image": PICTURE},
        "yes, it is",
        1,
    ),
    "scienceqa": (
        {"question": "Which?", "choices": ["dog", "cat"], "answer": 1, "hint": "", "image": None},
        "B. cat",
        1,
    ),
    "coco_caption": ({"image_id": 9, "image": PICTURE, "answer": ["a cat", "a dog"]}, "a cat", 0),
    "llava": (
        {"id": "x", "image": "a.png", "conversations": [
            {"from": "human", "value": "<image>\nTrue?"}, {"from": "gpt", "value": "true"}]},
        "True.",
        1,
    ),
}  # fmt: skip
ROWS["nlvr"] = ROWS["llava"]


def ask(name, row, said):
    task = make(name)
    [question] = task.questions(row)
    [mark] = task.marks([question], [said])
    return task, question, mark


def test_every_benchmark_is_here():
    assert set(ROWS) | {"tabletop"} == set(TASKS.names())


@pytest.mark.parametrize("name", ROWS)
def test_rows_become_questions_and_answers_marks(name):
    row, said, score = ROWS[name]
    task, question, mark = ask(name, row, said)
    assert mark.score == mark.strict == pytest.approx(score)
    judged = [Judged(question, said, mark)]
    json.dumps([task.figures(judged) if name != "coco_caption" else {}, task.tables(judged)])
    assert all(row["num"] for row in task.tables(judged).get("category", []))
    assert question.images or name == "scienceqa"
    nothing = task.marks([question], [""])[0]
    assert nothing.parsed is None and nothing.strict < 1


def test_mmmu_shows_pictures_in_the_order_of_the_text():
    row = OPEN | {"image_1": {"bytes": b"first"}, "image_2": {"bytes": b"second"}}
    _, question, mark = ask("mmmu", row, "3.43")
    assert question.images == (b"second", b"first")
    assert mark.score == 1 and "3.43" in mark.parsed
    _, inline, _ = ask("mmmu:interleaved", row, "")
    parts = inline.text[0]["content"]
    assert [part["type"] for part in parts] == ["image", "text", "image", "text"]
    assert parts[1]["text"] == " and "


def test_mmmu_guesses_count_in_the_official_score_alone():
    task = make("mmmu")
    [question] = task.questions(CHOICE)
    marks = task.marks([question] * 40, ["**B**"] * 40)
    assert {mark.strict for mark in marks} == {0} and {mark.parsed for mark in marks} == {None}
    assert 10 < sum(mark.score for mark in marks) < 30
    assert make("mmmu:lmms_eval").marks([question], ["Answer:B"])[0].strict == 1


def test_mmmu_pro_is_the_mean_of_both_sets():
    task = make("mmmu_pro")
    vision = CHOICE | {"question": None, "image": PICTURE}
    asked = [*task.questions(CHOICE), *task.questions(CHOICE | {"id": "test_Art_2"})]
    asked += task.questions(vision)
    assert [question.groups["set"] for question in asked] == ["standard", "standard", "vision"]
    marks = task.marks(asked, ["B", "A", "B"])
    judged = [Judged(q, "", mark) for q, mark in zip(asked, marks, strict=True)]
    assert sum(sum(part) / len(part) for part in task.parts(judged)) == pytest.approx(0.75)


def test_answers_in_every_form_that_is_published():
    people = [{"answer": "red", "answer_id": n} for n in range(3)]
    row = ROWS["vqav2"][0]
    for given in (people, {"answer": ["red"] * 3, "answer_id": [0, 1, 2]}, ["red"] * 3):
        assert ask("vqav2", row | {"answers": given}, "")[1].answer == ["red"] * 3
    for given, answer in (("['a', 'b']", ["a", "b"]), ("[0, 1)", "[0, 1)"), (["a"], ["a"])):
        assert ask("mmmu", OPEN | {"answer": given}, "")[1].answer == answer


def test_llava_conversations_have_a_question_for_each_answer():
    row = {
        "id": "c",
        "images": ["a.png", "b.png"],
        "conversations": [
            {"from": "human", "value": "<image>one?"},
            {"from": "gpt", "value": "1"},
            {"from": "human", "value": "<image>two?"},
            {"from": "gpt", "value": "2"},
        ],
    }
    first, second = make("llava").questions(row)
    assert (first.id, first.images, first.answer) == ("c/1", ("a.png",), "1")
    assert (second.id, second.images, len(second.text)) == ("c/2", ("a.png", "b.png"), 3)


@pytest.mark.parametrize(
    ("name", "change", "kind"),
    [
        ("mmmu", {"question": None}, "missing_column"),
        ("mmmu", {"question": ["a"]}, "column_type"),
        ("mmmu", {"image_1": None}, "missing_image"),
        ("mmmu", {"options": "['a'"}, "bad_options"),
        ("mmmu", {"options": "__import__('os').remove('x')"}, "bad_options"),
        ("mmmu", {"options": "['a']"}, "bad_options"),
        ("mmmu", {"options": "[[1], 'b']"}, "bad_options"),
        ("mmmu", {"options": "(" * 9999}, "bad_options"),
        ("mmmu", {"options": str(["x"] * 27)}, "bad_options"),
        ("mmmu", {"answer": "C"}, "bad_answer"),
        ("mmmu", {"answer": "AB"}, "bad_answer"),
        ("mmmu", {"answer": "?", "question_type": "open"}, "bad_answer"),
        ("vqav2", {"answers": "red"}, "column_type"),
        ("vqav2", {"answers": ["red"]}, "bad_answer"),
        ("vqav2", {"image": 5}, "image_type"),
        ("docvqa", {"answers": []}, "bad_answer"),
        ("pope", {"answer": "maybe"}, "bad_answer"),
        ("mme", {"category": "taste"}, "column_type"),
        ("scienceqa", {"answer": 2}, "bad_answer"),
        ("scienceqa", {"answer": True}, "bad_answer"),
        ("coco_caption", {"answer": []}, "bad_answer"),
        ("llava", {"conversations": []}, "conversation_type"),
    ],
)
def test_bad_rows_have_a_kind(name, change, kind):
    with pytest.raises(DataError) as error:
        list(make(name).questions(ROWS[name][0] | change))
    assert error.value.kind == kind


def test_a_cell_is_never_run(tmp_path):
    target = tmp_path / "run"
    code = f"[open({str(target)!r}, 'w').write('x')]"
    with pytest.raises(BadQuestion):
        base.texts({"options": code}, "options")
    assert not target.exists()


@pytest.mark.parametrize(
    ("spec", "metric", "words"),
    [
        ("mmmy", None, "Did you mean mmmu"),
        ("mmmu:lmms", None, "Did you mean lmms_eval"),
        ("vqav2:x", None, "official or lmms_eval"),
        ("pope:x", None, "no variants"),
        ("pope", "anls", "a score of its own"),
        ("llava:x.json", "exat", "Did you mean exact"),
        ("tabletop:vqq", None, "vqa_held_out"),
    ],
)
def test_unknown_names(spec, metric, words):
    with pytest.raises(SettingError, match=words):
        make(spec, metric)


def write(folder, name, rows):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) for row in rows]
    text = "\n".join(lines) if name.endswith("l") else f"[{','.join(lines)}]"
    (folder / name).write_text(text)


def chart(number, **change):
    row = {"id": number, "question": f"{number}?", "answer": "1", "image": "a.png"}
    return row | change


def read(folder, name="chartqa", limit=None, **more):
    task = make(name)
    return questions(task, open_source(task, folder, more.get("image_root")), limit)


def test_the_split_is_chosen_and_never_the_one_to_train_on(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    write(tmp_path, "train.json", [chart(0)])
    with pytest.raises(DataError, match="Files to train on are not read"):
        read(tmp_path)
    write(tmp_path, "val.jsonl", [chart(1)])
    assert [asked.question.id for asked in read(tmp_path)[0]] == ["1"]
    write(tmp_path, "test.json", [chart(2), chart(3)])
    assert [asked.question.id for asked in read(tmp_path)[0]] == ["2", "3"]
    assert [asked.question.id for asked in read(tmp_path, limit=1)[0]] == ["2"]
    assert [asked.question.id for asked in read(tmp_path / "val.jsonl")[0]] == ["1"]


def test_bad_rows_are_named_and_the_rest_is_asked(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    rows = [
        chart(1),
        chart(1, question="again?"),
        chart(2, image="../a.png"),
        chart(3, image="b.png"),
        {"id": 4},
        [5],
        chart(6, question="\ud800"),
        chart(7, answer="<script>alert(1)</script>"),
    ]
    write(tmp_path, "test.jsonl", rows)
    good, bad = read(tmp_path, image_root=tmp_path)
    assert [asked.question.id for asked in good] == ["1", "7"]
    assert [(row.place, row.kind) for row in bad] == [
        ("line 2", "duplicate_id"),
        ("line 3", "outside_root"),
        ("line 4", "missing_image"),
        ("line 5", "missing_column"),
        ("line 6", "not_an_object"),
        ("line 7", "encoding"),
    ]


def test_a_terminal_is_told_no_commands(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    write(
        tmp_path, "test.jsonl", [chart("\x1b[2J", type="\x1b[31mred"), chart("\x07", image="\x1b")]
    )
    good, bad = read(tmp_path)
    assert good[0].question.id == "?[2J" and good[0].question.groups == {"set": "?[31mred"}
    assert all(text.isprintable() for row in bad for text in vars(row).values())


def test_a_question_without_an_id_is_called_by_its_place(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    write(tmp_path, "test.jsonl", [chart(None), chart(None)])
    assert [asked.question.id for asked in read(tmp_path)[0]] == ["line-1/0", "line-2/0"]


def test_another_picture_or_text_is_another_question(tmp_path):
    write(tmp_path, "test.jsonl", [chart(1)])
    digests = set()
    for colour in ("red", "blue"):
        (tmp_path / "a.png").write_bytes(png(colour))
        digests.add(read(tmp_path)[0][0].digest)
    write(tmp_path, "test.jsonl", [chart(1, question="other?")])
    digests.add(read(tmp_path)[0][0].digest)
    assert len(digests) == 3


def test_mme_pictures_need_two_questions(tmp_path):
    row = ROWS["mme"][0] | {"image": "a.png"}
    (tmp_path / "a.png").write_bytes(png())
    other = row | {"question": "A dog?", "answer": "No"}
    write(tmp_path, "test.jsonl", [row, other, row | {"question_id": "b.png"}])
    good, bad = read(tmp_path, "mme")
    assert len(good) == 2 and [row.kind for row in bad] == ["no_pair"]


def test_parquet_folders_as_they_are_published(tmp_path):
    datasets = pytest.importorskip("datasets")
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for subject, split, picture in (
        ("Art", "validation", "red"),
        ("Math", "validation", "blue"),
        ("Math", "test", "green"),
        ("Math", "dev", "green"),
    ):
        row = CHOICE | {
            "id": f"{split}_{subject}_1",
            "image_1": {"bytes": png(picture), "path": "x.png"},
        }
        (tmp_path / subject).mkdir(exist_ok=True)
        table = arrow.Table.from_pylist([row, row | {"answer": "Z"}])
        parquet.write_table(table, tmp_path / subject / f"{split}-00000-of-00001.parquet")
    task = make("mmmu")
    source = open_source(task, tmp_path, None)
    good, bad = questions(task, source)
    assert [asked.question.id for asked in good] == ["validation_Art_1", "validation_Math_1"]
    assert [row.kind for row in bad] == ["bad_answer"] * 2 and "Art/validation" in bad[0].place
    assert good[0].question.images == ()  # no bytes are kept
    [picture] = source.pictures(task, good[1])
    assert picture.getpixel((0, 0)) == (0, 0, 255)
    saved = datasets.Dataset.from_parquet(str(tmp_path / "Math" / "test-00000-of-00001.parquet"))
    saved.save_to_disk(str(tmp_path / "saved" / "test"))
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["test"]}')
    good, _ = questions(task, open_source(task, tmp_path / "saved", None))
    assert [asked.question.id for asked in good] == ["test_Math_1"]


def test_cocos_own_annotations(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    data = {
        "images": [{"id": 9, "file_name": "a.png"}, {"id": 10, "file_name": "a.png"}],
        "annotations": [{"image_id": 9, "caption": text} for text in ("a cat", "a dog")],
    }
    file = tmp_path / "captions_val2017.json"
    file.write_text(json.dumps(data))
    good, bad = read(file, "coco_caption")
    assert [(a.question.id, a.question.answer) for a in good] == [("9", ["a cat", "a dog"])]
    assert [(row.id, row.kind) for row in bad] == [("10", "missing_column")]
    file.write_text('{"images": 3}')
    with pytest.raises(DataError, match="no file of COCO captions"):
        read(file, "coco_caption")


def test_a_huge_picture_becomes_text(tmp_path):
    import struct
    import zlib

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100))
    (tmp_path / "a.png").write_bytes(bomb + chunk(b"IEND", b""))
    write(tmp_path, "test.jsonl", [chart(1)])
    task = make("chartqa")
    source = open_source(task, tmp_path, None)
    good, _ = questions(task, source)
    with pytest.raises(DataError) as error:
        source.pictures(task, good[0])
    assert error.value.kind == "image_too_large"


def test_data_that_are_not_there(tmp_path):
    with pytest.raises(SettingError, match="--data"):
        open_source(make("mmmu"), None, None)
    with pytest.raises(SettingError, match="built in"):
        open_source(make("tabletop"), tmp_path, None)
    with pytest.raises(DataError, match="no data file of mmmu"):
        open_source(make("mmmu"), tmp_path, None)
    with pytest.raises(DataError, match="no such data file"):
        open_source(make("mmmu"), tmp_path / "x", None)
