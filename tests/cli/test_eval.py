"""`mmdiff eval` on the random checkpoint: benchmarks, bad rows, comparison."""

import json

import pytest
from PIL import Image

from mmdiff.data.worlds import tabletop_sets
from mmdiff.eval.tasks import tabletop


@pytest.fixture
def charts(tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    rows = [{"id": n, "question": f"{n}?", "answer": str(n), "image": "a.png"} for n in range(3)]
    rows.append({"id": 3, "question": "3?", "answer": "3", "image": "b.png"})
    (tmp_path / "test.json").write_text(json.dumps(rows))
    return tmp_path


def test_bad_rows_are_told_and_the_rest_is_scored(run, checkpoint, charts):
    output = charts / "out"
    command = ("eval", "chartqa", "--model", checkpoint, "--data", charts, "--output", output)
    made = run(*command, "--json")
    assert made.code == 2
    summary = made.rows[-1]["summary"]
    assert (summary["questions"], summary["data"]["kinds"]) == (3, {"missing_image": 1})
    assert "row 4: missing_image" in made.err and "1 rows were left out" in made.err
    assert (output / "report.html").stat().st_size > 1000
    results = json.loads((output / "results.json").read_text())
    assert results["decoding"]["max_new_tokens"] == 16
    limited = run(*command, "--limit", 2, "max_new_tokens=4", "steps=2")
    assert limited.code == 0
    assert "chartqa_relaxed" in limited.out and "questions                   2" in limited.out
    results = json.loads((output / "results.json").read_text())
    assert results["decoding"]["max_new_tokens"] == 4 and results["decoding"]["steps"] == 2


def test_tabletop_needs_no_data(run, checkpoint, tmp_path, monkeypatch):
    items = tuple(tabletop_sets._item("vqa", i) for i in range(2))
    monkeypatch.setattr(tabletop, "load_set", lambda name: items)
    monkeypatch.chdir(tmp_path)
    made = run("eval", "tabletop", "--model", checkpoint, "--json")
    assert made.code == 0 and (tmp_path / "runs" / "eval-tabletop" / "report.html").exists()
    *rows, last = made.rows
    assert last["summary"]["questions"] == 6 and {row["table"] for row in rows} == {"kind"}


def test_two_runs_are_compared(run, checkpoint, charts):
    (charts / "test.json").write_text(
        json.dumps(json.loads((charts / "test.json").read_text())[:3])
    )
    for name in ("a", "b"):
        output = ("--output", charts / name)
        settings = ("max_new_tokens=4", f"steps={1 if name == 'b' else 4}")
        assert (
            run("eval", "chartqa", "--model", checkpoint, "--data", charts, *output, *settings).code
            == 0
        )
    pair = (charts / "a", charts / "b")
    made = run("eval", "compare", *pair, "--output", charts / "ab", "--json")
    assert made.code == 0 and made.rows[0]["questions"] == 3 and made.rows[0]["nfe_change"] < 0
    assert "<svg" in (charts / "ab" / "compare.html").read_text()
    assert "95 % interval" in run("eval", "compare", *pair).out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("chartqa", "--output", "file"), "file; name a folder"),
        (("chartqq", "--output", "x"), "Did you mean chartqa"),
        (("chartqa", "--output", "x"), "--data"),
        (("chartqa", "--output", "x", "--data", "none"), "no such data file"),
        (("chartqa", "--output", "x", "stepps=2"), "steps"),
        (("compare", "a"), "two run folders"),
        (("compare", "a", "b"), "no such folder"),
    ],
)
def test_what_is_asked_for_wrongly(run, checkpoint, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    made = run("eval", *arguments, "--model", checkpoint)
    assert made.code == 2 and words in made.err and made.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
