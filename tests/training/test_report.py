"""Where figures go: TensorBoard's files where they can be written, log.jsonl always."""

import sys

import pytest

from mmdiff.errors import MissingExtraError
from mmdiff.training.loop import Trainer
from tests.training.test_training import interrupted, logged, recipe, shorten_text, train


@pytest.fixture(autouse=True)
def _short_text(monkeypatch):
    shorten_text(monkeypatch)


def test_without_tensorboard_a_note_says_so_and_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    trainer = Trainer(recipe(tmp_path / "run", report="tensorboard", max_steps=1))
    assert len(trainer.notes) == 1
    assert "pip install 'mmdiff[tensorboard]'" in trainer.notes[0] and "\n" not in trainer.notes[0]
    trainer.run()
    assert [row["step"] for row in logged(tmp_path / "run")] == [1]
    assert not list((tmp_path / "run").glob("events*"))


def test_wandb_is_there_or_nothing_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mmdiff\[wandb\]'"):
        Trainer(recipe(tmp_path / "run", report="wandb"))
    assert not (tmp_path / "run").exists()


def test_tensorboard_shows_each_step_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = tmp_path / "run"
    interrupted(output, after=5, report="tensorboard")
    train(output, report="tensorboard", resume=True)
    read = EventAccumulator(str(output)).Reload()
    rows = logged(output)
    shown = [(event.step, event.value) for event in read.Scalars("loss")]
    assert shown == [(row["step"], pytest.approx(row["loss"])) for row in rows]
    assert {"loss", "norm", "lr", "tokens", "validation"} <= set(read.Tags()["scalars"])


def test_figures_count_tokens(tmp_path):
    rows = train(tmp_path / "run", max_steps=2, validate_every=9)
    assert all(row["tokens"] > 100 for row in rows)
    assert rows[1]["seconds"] > rows[0]["seconds"] > 0
