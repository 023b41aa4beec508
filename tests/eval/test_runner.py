"""Whole runs on the random checkpoint: killed and resumed, never asked twice, reported."""

import html.parser
import json
import random
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest
import torch
from PIL import Image

import mmdiff
from mmdiff.errors import DataError, SettingError
from mmdiff.eval.compare import difference, page, read_run
from mmdiff.eval.results import bootstrap_error, score_of, warnings
from mmdiff.eval.samples import Sample, Samples

HOSTILE = "<script>document.title='run'</script><img src=x onerror=alert(1)>\"'&"


@pytest.fixture(scope="module")
def model(checkpoint):
    return mmdiff.load(checkpoint)


@pytest.fixture
def data(tmp_path):
    """Twelve good rows of which two show one picture, and one whose picture is no picture."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = []
    for number in range(13):
        name = f"{max(1, number)}.png"
        Image.new("RGB", (40, 40), (20 * number, 0, 255)).save(folder / name)
        turns = [("human", f"<image>\nnumber {number}?"), ("gpt", HOSTILE if number else "true")]
        told = [{"from": who, "value": text} for who, text in turns]
        rows.append({"id": f"r{number}", "image": name, "conversations": told})
    (folder / "12.png").write_text("no picture")
    (folder / "val.json").write_text(json.dumps(rows))
    return folder


def results(folder):
    """What stands in a run's results, without times."""
    found = json.loads((folder / "results.json").read_text())
    del found["time"]
    return found


def plain_samples(folder):
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def run(model, data, output, **more):
    return mmdiff.evaluate(model, "nlvr", data, output, **{"batch_size": 5, "name": "tiny", **more})


@pytest.fixture
def counted(model, monkeypatch):
    """How many questions each call of the model is asked."""
    asked = []
    real = type(model).run

    def counting(self, head, inputs, **more):
        asked.append(len(inputs))
        return real(self, head, inputs, **more)

    monkeypatch.setattr(type(model), "run", counting)
    return asked


def test_a_run_twice_asks_once_and_says_the_same(model, data, tmp_path, counted):
    first = run(model, data, tmp_path / "a")
    assert (first["questions"], first["data"]["kinds"]) == (12, {"not_an_image": 1})
    assert sum(counted) == 12
    before = results(tmp_path / "a"), plain_samples(tmp_path / "a")
    run(model, data, tmp_path / "a")
    assert sum(counted) == 12
    assert (results(tmp_path / "a"), plain_samples(tmp_path / "a")) == before
    bad = [
        json.loads(line) for line in (tmp_path / "a" / "bad_rows.jsonl").read_text().splitlines()
    ]
    assert [row["id"] for row in bad] == ["r12"]


def test_killed_ten_times_and_resumed(model, data, tmp_path, monkeypatch):
    run(model, data, tmp_path / "whole")
    rng = random.Random(0)
    real = type(model).run
    for _ in range(10):
        left = rng.randint(0, 1)

        def failing(self, *inputs, **more):
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            return real(self, *inputs, **more)

        monkeypatch.setattr(type(model), "run", failing)
        # Batches so small that ten kills do not finish.
        with pytest.raises(KeyboardInterrupt):
            run(model, data, tmp_path / "cut", batch_size=1)
        assert not (tmp_path / "cut" / "results.json").exists()
        file = tmp_path / "cut" / "samples.jsonl"
        written = file.read_bytes()
        file.write_bytes(written[: len(written) - rng.choice([0, 0, 3])])  # a line half written
    monkeypatch.setattr(type(model), "run", real)
    run(model, data, tmp_path / "cut")
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    assert plain_samples(tmp_path / "cut") == plain_samples(tmp_path / "whole")


def test_another_setting_or_weight_is_asked_again(model, data, tmp_path, counted):
    run(model, data, tmp_path / "a", limit=3)
    run(model, data, tmp_path / "a", limit=3, steps=2)
    assert sum(counted) == 6
    weight = next(model.parameters())
    with torch.no_grad():
        was = weight.clone()
        weight.view(-1)[0] += 1
        run(model, data, tmp_path / "a", limit=3)
        weight.copy_(was)
    assert sum(counted) == 9
    run(model, data, tmp_path / "a", limit=3, steps=2)
    assert sum(counted) == 9
    assert len(plain_samples(tmp_path / "a")) == 9
    Image.new("RGB", (40, 40), "white").save(data / "1.png")
    run(model, data, tmp_path / "a", limit=3)  # two of the rows show it
    assert sum(counted) == 11


def test_a_question_that_is_too_long_is_left_out(model, data, tmp_path):
    rows = json.loads((data / "val.json").read_text())[:4]
    rows[1]["conversations"][0]["value"] = "<image>\n" + "word " * 400
    (data / "val.json").write_text(json.dumps(rows))
    made = run(model, data, tmp_path / "a")
    assert made["questions"] == 3 and made["data"]["kinds"] == {"refused": 1}


def test_a_run_without_a_good_row(model, data, tmp_path):
    for picture in data.glob("*.png"):
        picture.unlink()
    made = run(model, data, tmp_path / "a")
    assert (made["score"], made["questions"], made["data"]["bad_rows"]) == (None, 0, 13)
    check_page((tmp_path / "a" / "report.html").read_text())


def test_seeds_must_be_one_number(model, data, tmp_path):
    with pytest.raises(SettingError, match="one number"):
        run(model, data, tmp_path / "a", seed=[1, 2])
    assert not (tmp_path / "a").exists()


def test_a_broken_file_of_answers_is_named(tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(DataError, match="line 1"):
        Samples(tmp_path)


class Page(html.parser.HTMLParser):
    """Tags of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.said = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, text):
        self.said.append(text)


def check_page(text):
    made = Page(text)
    for drawing in re.findall(r"<svg.*?</svg>", text, re.S):
        xml.etree.ElementTree.fromstring(drawing)
    names = {tag for tag, _ in made.tags}
    assert not names & {"script", "iframe", "object", "link", "a", "form"}
    for tag, attributes in made.tags:
        assert not any(name.startswith("on") for name in attributes)
        if tag == "img":
            assert attributes["src"].startswith("data:image/png;base64,")
    return made, names


def test_the_report_shows_everything_and_runs_nothing(model, data, tmp_path):
    run(model, data, tmp_path / "a")
    made, names = check_page((tmp_path / "a" / "report.html").read_text())
    assert {"svg", "table", "img", "rect"} <= names
    said = "".join(made.said)
    assert HOSTILE in said and "not_an_image" in said and "max_new_tokens" in said
    # Every good row but the first has an answer that no model gives.
    assert sum(tag == "img" for tag, _ in made.tags) >= 11


CHROMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")


@pytest.mark.skipif(not any(map(shutil.which, CHROMES)), reason="needs a Chromium browser")
def test_the_report_in_a_browser(model, data, tmp_path):
    run(model, data, tmp_path / "a")
    browser = next(filter(None, map(shutil.which, CHROMES)))
    shot, address = tmp_path / "shot.png", (tmp_path / "a" / "report.html").as_uri()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    size = ["--window-size=1000,6000", f"--screenshot={shot}"]
    subprocess.run([browser, *options, *size, address], check=True, timeout=120)
    colours = {colour for _, colour in Image.open(shot).convert("RGB").getcolors(1 << 24)}
    assert (0x3A, 0x6E, 0xA5) in colours  # bars
    assert (100, 0, 255) in colours  # a picture


def test_runs_are_compared_question_by_question(model, data, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    run(model, data, a, max_new_tokens=4)
    run(model, data, b, max_new_tokens=4, steps=1)
    for folder, marks in ((a, [0, 1] * 6), (b, [1, 1] * 6)):
        lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        lines = [line | {"score": mark} for line, mark in zip(lines, marks, strict=True)]
        (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = difference(read_run(a), read_run(b))
    assert (found.questions, found.better, found.worse) == (12, 6, 0)
    assert found.change == 0.5 and 0 < found.low < 0.5 < found.high < 1 and found.clear
    assert found.nfe_change < 0
    same = difference(read_run(a), read_run(a))
    assert (same.change, same.low, same.high, same.clear) == (0, 0, 0, False)
    made, names = check_page(page([read_run(a), read_run(b)], [found]))
    assert {"svg", "circle"} <= names and "+50.00" in "".join(made.said)


def test_runs_of_different_benchmarks_are_not_compared(model, data, tmp_path):
    run(model, data, tmp_path / "a")
    spec = f"llava:{data / 'val.json'}"
    mmdiff.evaluate(model, spec, output=tmp_path / "b", metric="anls")
    with pytest.raises(DataError, match="compare runs of one benchmark"):
        difference(read_run(tmp_path / "a"), read_run(tmp_path / "b"))
    with pytest.raises(DataError, match="no such folder"):
        read_run(tmp_path / "none")


def test_the_bootstrap_error_of_a_mean_is_that_of_the_formula():
    rng = random.Random(0)
    marks = [float(rng.random() < 0.3) for _ in range(400)]
    score, error = score_of([marks])
    assert score == pytest.approx(sum(marks) / 400)
    assert error == pytest.approx((score * (1 - score) / 400) ** 0.5, rel=0.1)
    both = score_of([marks, [2.0] * 5])
    assert both == (pytest.approx(score + 2), pytest.approx(error, rel=0.1))
    assert score_of([[], []]) == (None, None)
    assert bootstrap_error([torch.ones(3).numpy()]) == 0


def test_warnings_of_idle_schedules():
    short = [Sample("k", "i", "B", 1, 2, 0.0)] * 3
    settings = mmdiff.load().decoding({"max_new_tokens": 4, "accept": "schedule"})
    found = warnings(settings, short)
    assert "one cell per step" in found[0] and "one token" in found[1] and len(found) == 2
    quick = mmdiff.load().decoding({"max_new_tokens": 4, "accept": "schedule", "steps": 2})
    assert "fill all 4 cells" in warnings(quick, [Sample("k", "i", "B", 1, 4, 0.0)])[0]


def test_lucky_guesses_are_told(model, tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    row = {"question_type": "multiple-choice", "question": "?", "image_1": "a.png", "answer": "A"}
    rows = [{**row, "id": f"validation_Art_{n}", "options": ["x", "y"]} for n in range(8)]
    (tmp_path / "val.jsonl").write_text("\n".join(json.dumps(each) for each in rows))
    made = mmdiff.evaluate(model, "mmmu", tmp_path, tmp_path / "out", max_new_tokens=1)
    assert made["not_parsed"] == 1 and made["strict_score"] == 0 < made["score"]
    assert any("lucky guesses" in note for note in made["warnings"])
    assert [row["name"] for row in made["tables"]["subject"]][:2] == [
        "Overall-Art and Design",
        "Art",
    ]


def test_a_killed_process_leaves_whole_lines(checkpoint, data, tmp_path):
    """A real kill while answers are written, then the same command again."""
    code = (
        "import os, signal, mmdiff, mmdiff.eval.samples as s\n"
        "real = s.Samples.add\n"
        "def add(self, samples):\n"
        '    real(self, samples); self.file.write(b\'{"key": "half\'); self.file.flush()\n'
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "s.Samples.add = add\n"
        f"model = mmdiff.load({checkpoint!r})\n"
        f"mmdiff.evaluate(model, 'nlvr', {str(data)!r}, {str(tmp_path / 'a')!r}, batch_size=5)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, timeout=240)
    assert done.returncode == -9, done.stderr.decode()
    assert (tmp_path / "a" / "samples.jsonl").read_bytes().endswith(b'"half')
    model = mmdiff.load(checkpoint)
    run(model, data, tmp_path / "a")
    run(model, data, tmp_path / "b")
    assert results(tmp_path / "a") == results(tmp_path / "b")


@pytest.mark.slow
def test_two_processes_share_a_run(model, checkpoint, data, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += ["-m", "mmdiff", "eval", "nlvr", "--data", str(data), "--model", checkpoint]
    command += ["--output", str(tmp_path / "two"), "--batch-size", "2"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=280)
    assert (tmp_path / "two" / "results.json").exists(), done.stderr
    assert done.stdout.count("without guesses") == 1
    run(model, data, tmp_path / "one", name=checkpoint)
    assert results(tmp_path / "two") == results(tmp_path / "one")
    assert plain_samples(tmp_path / "two") == plain_samples(tmp_path / "one")
    assert not list((tmp_path / "two").glob("samples.*.jsonl"))
