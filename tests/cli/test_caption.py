"""`mmdiff caption`: output, order, settings."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image


def test_one_picture_prints_the_text_alone(run, checkpoint, picture):
    outcome = run("caption", picture, "--model", checkpoint)
    assert outcome.code == 0
    assert outcome.out.count("\n") == 1
    assert picture not in outcome.out
    assert outcome.err == ""


def test_several_pictures_are_named_in_order(run, checkpoint, picture):
    outcome = run("caption", picture, picture, "--model", checkpoint)
    assert outcome.code == 0
    assert [line.startswith(f"{picture}: ") for line in outcome.out.splitlines()] == [True, True]


def test_json_rows(run, checkpoint, picture):
    outcome = run("caption", picture, "--json", "--model", checkpoint, "max_new_tokens=3")
    (row,) = outcome.rows
    assert list(row) == ["file", "text", "nfe", "seconds"]
    assert row["file"] == picture
    assert 1 <= row["nfe"] <= 3
    assert row["seconds"] > 0


def test_settings_and_prompt_reach_the_decoder(run, checkpoint, picture):
    few = run("caption", picture, "--json", "--model", checkpoint, "steps=2").rows[0]
    assert few["nfe"] <= 2
    asked = run("caption", picture, "--prompt", "a star?", "--model", checkpoint)
    assert asked.code == 0


def test_more_pictures_than_are_held_at_once(run, checkpoint, picture, monkeypatch):
    monkeypatch.setattr("mmdiff.cli._common.CHUNK", 2)
    outcome = run("caption", *[picture] * 5, "--model", checkpoint, "--json", "steps=1")
    assert [row["file"] for row in outcome.rows] == [picture] * 5


def test_a_seed_for_each_picture_equals_single_runs(run, checkpoint, picture, tmp_path):
    missing = tmp_path / "missing.png"
    settings = ("--model", checkpoint, "--json", "temperature=1", "steps=2")
    together = run("caption", missing, picture, picture, *settings, "seed=[7,8,9]").rows
    for seed, row in ((8, together[1]), (9, together[2])):
        assert run("caption", picture, *settings, f"seed={seed}").rows[0]["text"] == row["text"]
    wrong = run("caption", picture, *settings, "seed=[1,2]")
    assert wrong.code == 2
    assert "seed lists 2 seeds" in wrong.err


def test_animate_writes_a_file(run, checkpoint, picture, tmp_path):
    target = tmp_path / "out.gif"
    outcome = run("caption", picture, "--model", checkpoint, "--animate", target)
    assert outcome.code == 0
    assert Image.open(target).is_animated
    assert sorted(os.listdir(tmp_path)) == ["out.gif", "picture.png"]


@pytest.mark.parametrize("name", ["out.mp4", "nowhere/out.gif"])
def test_a_bad_target_is_told_before_anything_is_read(run, checkpoint, tmp_path, name):
    outcome = run("caption", "missing.png", "--model", checkpoint, "--animate", tmp_path / name)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert name in outcome.err
    assert "missing.png" not in outcome.err


def test_animate_takes_one_picture(run, checkpoint, picture):
    outcome = run("caption", picture, picture, "--model", checkpoint, "--animate", "out.gif")
    assert outcome.code == 2
    assert "one picture" in outcome.err


def test_a_process_of_its_own(checkpoint, picture):
    """stdout holds JSON alone; logs, notes and errors go to stderr."""
    command = [sys.executable, "-m", "mmdiff", "caption", picture, "missing.png", "--json"]
    done = subprocess.run(
        [*command, "--model", checkpoint, "steps=1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["file"] for row in rows] == [picture, "missing.png"]
    assert "text" in rows[0]
    assert "no such file" in rows[1]["error"]
    assert "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if "error" in line] == [
        f"mmdiff: error: {rows[1]['error']}"
    ]
