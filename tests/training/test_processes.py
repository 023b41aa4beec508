"""Runs of their own processes: several at once, signals, sudden death."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mmdiff.errors import SettingError
from tests.helpers import NEW_MODEL
from tests.training.test_training import logged, recipe, shorten_text, train, weights

RECIPE = {
    "model": NEW_MODEL,
    "data": "tabletop",
    "batch_size": 4,
    "turns": 2,
    "row_cells": 160,
    "warmup_steps": 2,
    "workers": 0,
    "ema": 0.9,
    "validate_every": 1000,
    "report": "none",
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def start(tmp_path, output, launcher=(), **over):
    """`mmdiff train` in a process of its own."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **over, "output": str(output)}))
    command = [sys.executable, *launcher, "-m", "mmdiff", "train", str(path)]
    if (output / "checkpoints").is_dir() and list(
        (output / "checkpoints").glob("step-*/state.json")
    ):
        command.append("--resume")
    return subprocess.Popen(
        command,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process):
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text
    return text


def losses(output):
    return [row["loss"] for row in logged(output)]


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)


@pytest.mark.parametrize("denominator", ["answer", "masked", "root", "group"])
def test_parts_of_a_step_change_nothing(tmp_path, monkeypatch, denominator):
    shorten_text(monkeypatch)
    settings = {
        "objective": {"denominator": denominator, "anchors": 0.5},
        "batch_size": 4,
        "optimizer": "adamw",
        "max_steps": 5,
    }
    curves = [
        [row["loss"] for row in train(tmp_path / str(n), accumulate=n, **settings)]
        for n in (1, 2, 4)
    ]
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    assert curves[2] == pytest.approx(curves[0], rel=1e-5)


def test_a_step_that_cannot_be_shared_evenly_is_refused(tmp_path, monkeypatch):
    from mmdiff.training.loop import Trainer

    shorten_text(monkeypatch)
    with pytest.raises(SettingError, match="batch_size=2 is no multiple of 1 processes x acc"):
        Trainer(recipe(tmp_path / "run", accumulate=4))


def test_two_processes_have_the_losses_of_one(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    settings = {"max_steps": 12, "objective": {"anchors": 0.5}}
    finish(start(tmp_path, tmp_path / "one", **settings))
    finish(start(tmp_path, tmp_path / "two", launcher, **settings))
    assert len(losses(tmp_path / "two")) == 12
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


@pytest.mark.slow
def test_fifty_steps_are_the_same_however_they_are_shared(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    settings = {"max_steps": 50, "warmup_steps": 10}
    finish(start(tmp_path, tmp_path / "one", **settings))
    finish(start(tmp_path, tmp_path / "two", launcher, **settings))
    finish(start(tmp_path, tmp_path / "parts", accumulate=4, **settings))
    assert len(losses(tmp_path / "one")) == 50
    for shared in ("two", "parts"):
        assert losses(tmp_path / shared) == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


@pytest.mark.slow
def test_sharded_weights_learn_what_whole_ones_do(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    settings = {"max_steps": 8, "min_lr_ratio": 1.0, "ema": 0.0, "objective": {"anchors": 0.5}}
    finish(start(tmp_path, tmp_path / "whole", **settings))
    output = tmp_path / "run"
    finish(start(tmp_path, output, launcher, **{**settings, "max_steps": 4}, shard=True))
    finish(start(tmp_path, output, launcher, **settings, shard=True, accumulate=2))
    assert losses(output) == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    assert logged(output)[-1]["validation"] == pytest.approx(
        logged(tmp_path / "whole")[-1]["validation"], rel=1e-5
    )
    found, wanted = (
        load_file(folder / "model.safetensors") for folder in (output, tmp_path / "whole")
    )
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    # A run without shards goes on from it.
    more = {**settings, "max_steps": 9}
    finish(start(tmp_path, output, **more))
    assert len(losses(output)) == 9


def test_shards_that_cannot_be(tmp_path, monkeypatch):
    from mmdiff.training.loop import Trainer

    shorten_text(monkeypatch)
    adamw = {"optimizer": "adamw", "ema": 0.0}
    with pytest.raises(SettingError, match="needs several processes"):
        Trainer(recipe(tmp_path / "run", shard=True, **adamw))
    with pytest.raises(SettingError, match="without ema, lora and compile"):
        recipe(tmp_path / "run", shard=True, optimizer="adamw")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(SettingError, match="launch without --use_fsdp"):
        Trainer(recipe(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_sigterm_saves_and_a_resumed_run_is_the_same(tmp_path):
    finish(start(tmp_path, tmp_path / "whole", max_steps=30))
    output = tmp_path / "run"
    process = start(tmp_path, output, max_steps=30, workers=1)
    wait_for(output / "log.jsonl", process)
    os.killpg(process.pid, signal.SIGTERM)  # the loader's worker hears it, too
    finish(process)
    done = len(losses(output))
    assert 0 < done < 30
    assert (
        json.loads((output / f"checkpoints/step-{done:07d}/state.json").read_text())["step"] == done
    )
    finish(start(tmp_path, output, max_steps=30))
    assert weights(output) == weights(tmp_path / "whole")


@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_as_if_it_had_not_been(tmp_path):
    settings = {"max_steps": 200, "save_every": 5, "keep": 2}
    whole, output = tmp_path / "whole", tmp_path / "run"
    began = time.monotonic()
    finish(start(tmp_path, whole, **settings))
    length = time.monotonic() - began
    draw = random.Random(0)
    for _ in range(20):
        process = start(tmp_path, output, **settings)
        try:
            process.wait(timeout=length * draw.uniform(0.1, 0.6))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for folder in (output / "checkpoints").glob("step-*"):
            if folder.suffix == "":
                assert json.loads((folder / "state.json").read_text())["step"] > 0
    finish(start(tmp_path, output, **settings))
    assert weights(output) == weights(whole)
    strip = [(row["step"], row["loss"]) for row in logged(output)]
    assert strip == [(row["step"], row["loss"]) for row in logged(whole)]
