"""`mmdiff train` on data files: the shipped recipe, bad rows, mixtures from a recipe file."""

import json

import pytest
import yaml

from mmdiff.cli.train import find_recipe
from mmdiff.config import read_yaml
from tests.data.malformed import png, row, talk

SHORT = ["max_steps=2", "batch_size=2", "workers=0", "save_every=2", "validate_every=2", "ema=0",
         "report=none"]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "mine"
    (made / "images").mkdir(parents=True)
    for name in "abcd":
        (made / "images" / f"{name}.png").write_bytes(png(32, seed=ord(name)))
    rows = [row(name, f"{name}.png", "<image>\nwhat is it?", "a red circle") for name in "abc"]
    rows += [
        talk("t", ("human", "<image> what?"), ("gpt", "a star"), ("human", "sure?"), ("gpt", "yes"),
             image="d.png"),
        row("w", None, "how are you?", "fine"),
        row("two", ["a.png", "d.png"], "<image> or <image>?", "both"),
    ]  # fmt: skip
    (made / "train.json").write_text(json.dumps(rows))
    return made


def test_the_shipped_recipe(run, folder, checkpoint, tmp_path):
    output = tmp_path / "run"
    start = ["train", "llava_finetune", f"data={folder}", f"model={checkpoint}", f"output={output}"]
    done = run(*start, *SHORT, "--json")
    assert done.code == 0, done.err
    assert [each["step"] for each in done.rows[:-1]] == [1, 2]
    assert done.rows[-1]["summary"]["validation"] > 0
    more = run(*start, *SHORT, "max_steps=3", "--resume", "--json")
    assert [each["step"] for each in more.rows[:-1]] == [3]
    picture = folder / "images" / "a.png"
    assert run("answer", picture, "what is it?", "--model", output, "max_new_tokens=4").code == 0


@pytest.mark.parametrize("name", ["llava_lora", "stage1_projector", "stage2_full"])
def test_recipes_like_it(run, folder, checkpoint, tmp_path, name):
    output = tmp_path / "run"
    start = ["train", name, f"data={folder}", f"model={checkpoint}", f"output={output}"]
    done = run(*start, *SHORT)
    assert done.code == 0, done.err
    picture = folder / "images" / "a.png"
    assert run("answer", picture, "what is it?", "--model", output, "max_new_tokens=4").code == 0
    assert (output / "adapter_config.json").is_file() == (name == "llava_lora")
    facts = run("info", output, "--json").rows[0]
    assert facts.get("adapters_for") == (str(checkpoint) if name == "llava_lora" else None)


def test_recipes_like_each_other_are_refused(run, tmp_path):
    (tmp_path / "a.yaml").write_text(f"like: {tmp_path / 'a.yaml'}")
    done = run("train", tmp_path / "a.yaml")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "like each other in a circle" in done.err


def test_bad_rows_stop_or_are_left_out(run, folder, checkpoint, tmp_path):
    path = folder / "train.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([*rows, row("bad", "no.png"), row("a")]))
    output = tmp_path / "run"
    start = ["train", "llava_finetune", f"data={folder}", f"model={checkpoint}", f"output={output}"]
    stopped = run(*start, *SHORT)
    assert stopped.code == 2
    assert "2 of 8 rows are bad (missing_image 1, duplicate_id 1)" in stopped.err
    assert f"mmdiff check {path}" in stopped.err
    assert stopped.err.count("\n") == 1
    assert not output.exists()
    skipped = run(*start, *SHORT, "max_steps=1", "bad_rows=skip", "unique_ids=false")
    assert skipped.code == 0
    assert "1 of 8 rows are bad" in skipped.err


def test_a_mixture_in_a_recipe_file(run, folder, checkpoint, tmp_path):
    written = read_yaml(find_recipe("llava_finetune"))
    part = {"data": str(folder), "take": "first:4", "weight": 2}
    written |= {"data": [part, {"data": "tabletop", "weight": 1}], "turns": 1}
    path = tmp_path / "mixed.yaml"
    path.write_text(yaml.safe_dump(written))
    done = run("train", path, f"model={checkpoint}", f"output={tmp_path / 'run'}", *SHORT)
    assert done.code == 0, done.err


def test_a_picture_that_goes_while_training_is_one_line(
    run, folder, checkpoint, tmp_path, monkeypatch
):
    from mmdiff.training import loop

    plain = loop.build

    def build(recipe):
        (folder / "images" / "d.png").unlink(missing_ok=True)  # all was well when it was checked
        return plain(recipe)

    monkeypatch.setattr(loop, "build", build)
    start = ["train", "llava_finetune", f"data={folder}", f"model={checkpoint}"]
    done = run(*start, f"output={tmp_path / 'run'}", *SHORT, "workers=1", "batch_size=6")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "has changed since it was checked: there is no 'd.png'" in done.err
    assert "Traceback" not in done.err


def test_a_file_that_is_not_there(run, tmp_path, checkpoint):
    done = run("train", "llava_finetune", "data=mine.json", f"output={tmp_path / 'run'}")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "neither a source (tabletop) nor a file" in done.err


def test_a_data_file_that_changed_stops_a_resume(run, folder, checkpoint, tmp_path):
    output = tmp_path / "run"
    start = ["train", "llava_finetune", f"data={folder}", f"model={checkpoint}", f"output={output}"]
    assert run(*start, *SHORT).code == 0
    path = folder / "train.json"
    before = path.read_bytes()
    path.write_bytes(before.replace(b"a red circle", b"a red square", 1))
    log = (output / "log.jsonl").read_bytes()
    stopped = run(*start, *SHORT, "max_steps=3", "--resume")
    assert (stopped.code, stopped.err.count("\n")) == (2, 1)
    assert "train.json has changed since step-0000002" in stopped.err
    assert "changed_data=accept" in stopped.err
    assert (output / "log.jsonl").read_bytes() == log
    path.write_bytes(before)  # written anew, yet the same
    assert run(*start, *SHORT, "max_steps=3", "--resume").code == 0
    path.write_bytes(before.replace(b"a red circle", b"a red square", 1))
    assert run(*start, *SHORT, "max_steps=4", "--resume", "changed_data=accept").code == 0


def test_conversations_together(run, folder, checkpoint, tmp_path):
    output = tmp_path / "run"
    start = ["train", "llava_finetune", f"data={folder}", f"model={checkpoint}", f"output={output}"]
    done = run(*start, *SHORT, "conversation=by_turn", "group_lengths=2")
    assert done.code == 0, done.err
    assert json.loads((output / "config.json").read_text())["turn_causal"] is True
    picture = folder / "images" / "a.png"
    assert run("answer", picture, "what is it?", "--model", output, "max_new_tokens=4").code == 0
