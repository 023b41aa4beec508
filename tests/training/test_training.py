"""Runs of six steps: what they leave behind, resuming, and what stops them."""

import itertools
import json
import math

import pytest
import torch
from PIL import Image

import mmdiff
from mmdiff.config import build
from mmdiff.data.tabletop_source import Tabletop
from mmdiff.errors import SettingError, TrainingError
from mmdiff.processing import collate
from mmdiff.training import loop
from mmdiff.training.batches import Batch, Batches, with_noise
from mmdiff.training.loop import Trainer
from mmdiff.training.objective import anchor_loss, batch_loss, task_loss
from mmdiff.training.packing import encode_turns
from mmdiff.training.recipe import Objective, Recipe
from tests.helpers import NEW_MODEL, TEXT_CONFIG, separate_prefix

RECIPE = {
    "model": NEW_MODEL,
    "data": "tabletop",
    "max_steps": 6,
    "batch_size": 2,
    "turns": 2,
    "row_cells": 160,
    "optimizer": "muon",
    "ema": 0.9,
    "warmup_steps": 2,
    "workers": 0,
    "save_every": 3,
    "validate_every": 6,
    "report": "none",
}


def shorten_text(patch):
    """Fitting a tokenizer needs few words here."""
    plain = Tabletop.text
    patch.setattr(Tabletop, "text", lambda self, seed: itertools.islice(plain(self, seed), 200))


@pytest.fixture(autouse=True)
def _short_text(monkeypatch):
    shorten_text(monkeypatch)


def recipe(output, **over):
    return build(Recipe, {**RECIPE, "output": str(output), **over}, "a test")


def train(output, **over):
    rows = []
    Trainer(recipe(output, **over)).run(rows.append)
    return rows


def interrupted(output, after, **over):
    """A run that is killed when it has taken step `after`."""

    def stop(row):
        if row["step"] == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(recipe(output, **over)).run(stop)


def logged(output):
    rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def weights(output):
    return (output / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of six steps; tests read it and leave it as it is."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        shorten_text(patch)
        train(output)
    return output


def test_a_run_leaves_a_model_that_loads(whole):
    rows = logged(whole)
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert all(row["loss"] > 0 and row["norm"] > 0 for row in rows)
    assert rows[0]["lr"] == pytest.approx(rows[1]["lr"] / 2)
    assert rows[-1]["validation"] > 0
    model = mmdiff.load(whole)
    assert model.config.picture_apart
    assert model.caption(Image.new("RGB", (40, 30), "red"), max_new_tokens=3).nfe > 0
    kept = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert kept == ["step-0000003", "step-0000006"]
    assert json.loads((whole / "recipe.json").read_text())["max_steps"] == 6


def test_resuming_is_bit_identical(whole, tmp_path):
    output = tmp_path / "run"
    interrupted(output, after=5)
    assert len(logged(output)) == 5
    with (output / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # the crash cut this line short
    rows = train(output, resume=True)
    assert [row["step"] for row in rows] == [4, 5, 6]
    assert logged(output) == logged(whole)
    assert weights(output) == weights(whole)


def test_a_finished_run_has_nothing_left_to_do(whole, tmp_path):
    before = logged(whole), weights(whole)
    assert train(whole, resume=True) == []
    assert (logged(whole), weights(whole)) == before


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_loss_falls_on_a_repeated_batch(tmp_path, monkeypatch, optimizer):
    plain = Tabletop.sample

    def same(self, index, *rest):
        return plain(self, 30_000 + index % 2, *rest)

    monkeypatch.setattr(Tabletop, "sample", same)
    rows = train(tmp_path / "run", max_steps=8, lr=1e-2, optimizer=optimizer, ema=0.0)
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]


@pytest.mark.parametrize("copies", [1, 2])
def test_packed_samples_equal_separate_ones(whole, copies):
    model = mmdiff.load(whole).double()
    processor, objective = model.processor, Objective(complementary=copies == 2)
    made = recipe("unused", row_cells=5000, objective={"complementary": copies == 2})
    source = Tabletop()
    batch = Batches(source, processor, made, True, "train")[15_000]
    rows, owner, images = [], [], []
    for number, index in enumerate((30_000, 30_001)):
        sample = source.sample(index, made.seed, made.turns, "train")
        pairs = encode_turns(sample, processor, made.seed)
        assert len(pairs) == 3
        split = separate_prefix(pairs, copies, number, 1 + model.image_tokens)
        rows, owner, images = rows + split, owner + [index] * len(split), [*images, *sample.images]
    canvas = collate(rows, processor.end_id, processor.pixels(images), processor.image_token_id)
    alone = with_noise(canvas, torch.tensor(owner), made.seed)
    with torch.no_grad():
        one, other = (float(batch_loss(model, b, objective)) for b in (batch, alone))
    assert one == pytest.approx(other, rel=1e-9)


def test_anchors_are_the_centres_and_all_other_cells_are_empty(whole):
    processor = mmdiff.load(whole).processor
    made = recipe("unused", objective={"anchors": 0.5})
    samples = [Tabletop().sample(i, made.seed, made.turns, "train") for i in range(2)]
    batch = Batches(Tabletop(), processor, made, True, "train")[0]
    side = math.isqrt(processor.image.tokens)
    length = batch.canvas.shape[1]
    centres = set()
    for row, sample in enumerate(samples):
        begin = row * length + batch.canvas.ids[row].tolist().index(processor.image_token_id)
        for anchor in sample.anchors:
            cell = begin + int(anchor.y * side) * side + int(anchor.x * side)
            centres.add(cell)
            said = batch.anchor_words[batch.anchor_cells == cell].tolist()
            ids = [processor.encode(word) for word in anchor.words]
            assert {i[0] for i in ids if len(i) == 1} <= set(said)
    assert set(batch.anchor_cells.tolist()) <= centres
    assert len(batch.empty_cells) == 2 * side * side - len(centres)
    assert centres.isdisjoint(batch.empty_cells.tolist())


def test_anchor_loss_is_the_mean_over_words_plus_that_over_empty_cells(whole):
    model = mmdiff.load(whole)
    embeds = torch.randn(6, model.get_input_embeddings().weight.shape[1])
    batch = Batch(None, None, None, torch.tensor([1, 1, 4]), torch.tensor([7, 8, 9]))
    logp = model.head(embeds).log_softmax(1).detach()
    words = -(logp[1, 7] + logp[1, 8] + logp[4, 9]) / 3
    assert float(anchor_loss(model, embeds, batch).detach()) == pytest.approx(
        float(words), rel=1e-5
    )
    batch.empty_cells = torch.tensor([0, 5])
    end = model.config.eos_token_id
    both = words - (logp[0, end] + logp[5, end]) / 2
    assert float(anchor_loss(model, embeds, batch).detach()) == pytest.approx(float(both), rel=1e-5)


def test_block_diffusion_trains(tmp_path):
    model = {**NEW_MODEL, "attention_layout": "block"}
    run = {"model": model, "objective": "bd3", "max_steps": 2, "validate_every": 2}
    rows = train(tmp_path / "run", **run)
    assert all(math.isfinite(row["loss"]) and row["loss"] > 0 for row in rows)
    assert rows[-1]["validation"] > 0


def test_eager_attention_changes_the_speed_alone(whole, tmp_path):
    rows = train(tmp_path / "run", attention="eager")
    for one, other in zip(rows, logged(whole), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


# What stops a run


def test_a_used_folder_is_refused(whole):
    before = (whole / "recipe.json").read_text()
    with pytest.raises(TrainingError, match=r"holds a run at step-0000006; add resume=true"):
        train(whole, max_steps=9)
    assert (whole / "recipe.json").read_text() == before


def test_blocks_need_a_model_that_knows_them(tmp_path):
    with pytest.raises(SettingError, match="needs a model with attention_layout: block; this one"):
        train(tmp_path / "run", objective="bd3")
    assert not (tmp_path / "run").exists()


def test_nothing_to_resume_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="holds no checkpoint to resume from"):
        train(tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_does_not_fit_leaves_the_folder_as_it_was(whole):
    before = (whole / "recipe.json").read_text(), logged(whole)
    other = {**NEW_MODEL, "text_config": {**TEXT_CONFIG, "hidden_size": 16}}
    with pytest.raises(TrainingError, match="does not fit this recipe"):
        train(whole, resume=True, model=other)
    assert ((whole / "recipe.json").read_text(), logged(whole)) == before


def test_a_fresh_start_forgets_an_old_log(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 9}\n{"st')
    train(tmp_path, max_steps=1, validate_every=9)
    assert [row["step"] for row in logged(tmp_path)] == [1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_samples(tmp_path, monkeypatch, bad):
    def broken(*given):
        loss = task_loss(*given)
        return loss * bad if len(rows) == 2 else loss

    rows = []
    monkeypatch.setattr(loop, "task_loss", broken)
    with pytest.raises(TrainingError, match=r"at step 2; lower lr or check .* scene 4, scene 5$"):
        Trainer(recipe(tmp_path / "run", validate_every=9)).run(rows.append)
    assert len(logged(tmp_path / "run")) == 2


def test_torch_without_muon_names_the_other_optimizer(tmp_path, monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(SettingError, match="use optimizer=adamw"):
        train(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_without_words_cannot_be_trained(whole, tmp_path):
    model = mmdiff.load(whole)
    model.processor = None
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(TrainingError, match="holds no processor files"):
        train(tmp_path / "run", model=str(tmp_path / "bare"))
