"""`mmdiff train`: a run of two steps, a resume, and errors that leave nothing behind."""

import pytest
import yaml

from mmdiff.cli.train import find_recipe, read_recipe
from tests.helpers import NEW_MODEL

RECIPE = {
    "model": NEW_MODEL,
    "data": "tabletop",
    "output": "unset",
    "max_steps": 2,
    "batch_size": 2,
    "turns": 1,
    "workers": 0,
    "validate_every": 2,
    "save_every": 1,
    "report": "none",
}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    # Fitting a tokenizer needs few words here.
    from mmdiff.data.tabletop_source import Tabletop

    monkeypatch.setattr(Tabletop, "text", lambda self, seed: iter(["a red circle."]))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def test_train_resume_and_load(run, recipe, tmp_path, picture):
    output = tmp_path / "run"
    outcome = run("train", recipe, f"output={output}", "--json")
    assert outcome.code == 0
    *rows, last = outcome.rows
    assert [row["step"] for row in rows] == [1, 2]
    assert last["summary"]["output"] == str(output)
    assert last["summary"]["validation"] > 0
    assert run("caption", picture, "--model", output, "steps=1").code == 0

    again = run("train", recipe, f"output={output}")
    assert again.code == 2
    assert "resume" in again.err
    more = run("train", recipe, f"output={output}", "max_steps=3", "--resume", "--json")
    assert [row["step"] for row in more.rows[:-1]] == [3]
    (done,) = run("train", recipe, f"output={output}", "max_steps=3", "--resume", "--json").rows
    assert (done["summary"]["steps"], done["summary"]["loss"]) == (3, None)


def test_the_summary_in_words(run, recipe, tmp_path):
    outcome = run("train", recipe, f"output={tmp_path / 'run'}", "max_steps=1")
    assert outcome.code == 0
    assert "1 steps, loss" in outcome.out


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("max_stepz=3", "Did you mean max_steps?"),
        ("model.vocab_sise=3", "Did you mean vocab_size?"),
        ("lr=fast", "lr must be a number"),
        ("data=tabeltop", "Did you mean tabletop?"),
        ("model=no/such/folder", "neither a folder nor a built-in name"),
        ("oops", "unexpected 'oops'"),
    ],
)
def test_errors_leave_nothing_behind(run, recipe, tmp_path, setting, words):
    output = tmp_path / "run"
    outcome = run("train", recipe, f"output={output}", setting)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert words in outcome.err
    assert not output.exists()


def test_an_unknown_key_in_the_file(run, recipe, tmp_path):
    recipe.write_text(yaml.safe_dump({**RECIPE, "batchsize": 3}))
    outcome = run("train", recipe, f"output={tmp_path / 'run'}")
    assert outcome.code == 2
    assert f"{recipe}: unknown setting batchsize. Did you mean batch_size?" in outcome.err


def test_an_output_that_is_a_file(run, recipe, tmp_path):
    outcome = run("train", recipe, f"output={recipe}")
    assert outcome.code == 2
    assert "cannot be written" in outcome.err


def test_an_unknown_recipe_names_the_nearest(run):
    outcome = run("train", "tinny")
    assert outcome.code == 2
    assert "Did you mean tiny?" in outcome.err


def test_every_shipped_recipe_is_valid():
    folder = find_recipe("tiny").parent
    for path in folder.glob("*.yaml"):
        assert read_recipe(str(path), {}).max_steps > 0
