"""Objectives: presets, what each setting does to a batch, rows with nothing left to learn."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from mmdiff.cli.train import read_recipe
from mmdiff.config import build, shipped, to_dict
from mmdiff.data.tabletop_source import Tabletop
from mmdiff.diffusion.arrange import paired, with_context
from mmdiff.diffusion.schedule import mask_probability, uniform
from mmdiff.errors import SettingError
from mmdiff.processing import collate, packed_row, prompt_row
from mmdiff.training.batches import Batch, Batches, plain_ids, with_noise
from mmdiff.training.objective import batch_loss, noised, prepare, task_loss
from mmdiff.training.recipe import Objective, Recipe
from tests.helpers import NEW_MODEL

MASK, VOCABULARY = 0, 12


def objective(written):
    return build(Objective, written if isinstance(written, dict) else {"preset": written}, "a test")


class Table(torch.nn.Module):
    """Logits by (row, cell): a model to be differentiated that looks at nothing."""

    device = torch.device("cpu")
    config = SimpleNamespace(mask_token_id=MASK, attention_layout="full")

    def __init__(self, rows, cells):
        super().__init__()
        made = torch.randn(rows, cells, VOCABULARY, generator=torch.Generator().manual_seed(0))
        self.logits = torch.nn.Parameter(made.double())

    def score(self, canvas, need):
        return self.logits[need]


def canvas_of(lengths=(5, 3), prompt=2):
    rows = [
        prompt_row(list(range(1, 1 + prompt)), list(range(4, 4 + n)), [True] * n) for n in lengths
    ]
    canvas = collate(rows, pad_id=1)
    canvas.masked = torch.zeros_like(canvas.masked)
    return canvas


def batch_of(rule, canvas, time=0.6, draw=None):
    if rule.block:
        canvas = with_context(canvas, rule.block)
    u = uniform(torch.arange(2)[:, None], canvas.position).double()
    if rule.complementary:
        canvas, u = paired(canvas), u.repeat(2, 1)
    u = u if draw is None else torch.full_like(u, draw)
    given = torch.full_like(canvas.ids, 3) if rule.noise == "uniform" else None
    return Batch(canvas, torch.full_like(u, time), u, given=given)


# Presets


def test_the_presets_are_different_objectives():
    made = {name: objective(name) for name in shipped("objective")}
    assert {"lavida", "llada", "llada_v", "dimple", "mdlm", "bd3", "efficient_dlm", "dream",
            "rediff", "dllm", "dparallel", "flat"} <= set(made)  # fmt: skip
    assert len({tuple(to_dict(rule).items()) for rule in made.values()}) == len(made)
    for rule in made.values():
        assert build(Objective, to_dict(rule), "again") == rule


def test_a_setting_beside_a_preset_takes_its_place():
    rule = objective({"preset": "llada", "weight": "one"})
    assert rule == dataclasses.replace(objective("llada"), weight="one")


@pytest.mark.parametrize("written", ["llada", "{preset: llada}"])
def test_a_recipe_names_a_preset_and_the_command_line_changes_it(tmp_path, written):
    path = tmp_path / "mine.yaml"
    path.write_text(f"model: m\ndata: tabletop\noutput: o\nmax_steps: 1\nobjective: {written}\n")
    assert read_recipe(str(path), {}).objective == objective("llada")
    made = read_recipe(str(path), {"objective": {"eps": 0.01}}).objective
    assert made == objective({"preset": "llada", "eps": 0.01})
    assert read_recipe(str(path), {"objective": "dimple"}).objective == objective("dimple")


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("ar_to_diffusion", "dimple"),
        ("ar_to_diffusion_align", "autoregressive"),
        ("ar_to_diffusion_instruct", "autoregressive"),
        ("block_diffusion", "efficient_dlm"),
        ("rediff", "rediff"),
        ("dparallel", "dparallel"),
    ],
)
def test_a_recipe_like_another_has_its_own_preset_alone(name, preset):
    assert read_recipe(name, {}).objective == objective(preset)
    made = read_recipe(name, {"objective": {"eps": 0.01}}).objective
    assert made == objective({"preset": preset, "eps": 0.01})


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(SettingError, match=r"a test: preset 'lavda' is unknown.*lavida"):
        objective("lavda")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"low": 0.8, "high": 0.3}, "0 <= low <= high <= 1"),
        ({"replace": 1.0}, "must lie in"),
        ({"block": -1}, "must not be negative"),
        ({"half_life": 0.25}, "needs exact=true"),
        ({"exact": True, "half_life": 0.0}, "above 0"),
        ({"at_least_one": True, "weight": "inverse_p"}, "use weight=one"),
        ({"compat": "lavida"}, "at_least_one=True"),
        ({"compat": "mdlm"}, "schedule=mdlm_log"),
        ({"compat": "rediff"}, "denominator=group"),
        ({"autoregressive": True}, "autoregressive scores every answer cell once"),
        ({"preset": "autoregressive", "block": 4}, "neither block nor noise"),
        ({"preset": "autoregressive", "noise": "uniform"}, "neither block nor noise"),
        ({"preset": "flat", "weight": "inverse_p"}, "complementary=false and weight=one"),
        ({"preset": "dparallel", "low": 0.1}, "low and high to be equal"),
        ({"preset": "dparallel", "denominator": "masked"}, "needs denominator=group"),
        ({"preset": "dparallel", "certainty_temperature": 0.0}, "above 0"),
    ],
)
def test_settings_that_contradict_each_other(settings, text):
    with pytest.raises(SettingError, match=text):
        objective(settings)


# Rows in which nothing is left to learn


@pytest.mark.parametrize("name", sorted(shipped("objective")))
@pytest.mark.parametrize(
    ("time", "draw"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.0, 0.0), (0.5, None)]
)
def test_every_preset_is_finite_when_all_or_none_is_masked(name, time, draw):
    rule = objective(name)
    batch = batch_of(rule, canvas_of(), time, draw)
    model = Table(*batch.canvas.shape)
    loss = batch_loss(model, batch, rule)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert float(loss.detach()) >= 0
    assert bool(torch.isfinite(model.logits.grad).all())


@pytest.mark.parametrize("name", sorted(shipped("objective")))
def test_rows_of_padding_count_for_nothing(name):
    rule = objective(name)
    canvas = canvas_of()
    canvas.valid[1] = False
    canvas.ids[1] = MASK
    batch = batch_of(rule, canvas)
    model = Table(*batch.canvas.shape)
    loss = batch_loss(model, batch, rule)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert not bool(model.logits.grad[1::2].any())


# What single settings do


def test_the_range_of_times_is_the_range_of_p():
    rule = objective({"low": 0.3, "high": 0.8, "eps": 0.0, "complementary": False})
    for time, p in ((0.0, 0.3), (0.5, 0.55), (1.0, 0.8)):
        noisy = noised(batch_of(rule, canvas_of(), time), rule, MASK)
        assert float(noisy.p[0, 0]) == pytest.approx(p)


def test_at_least_one_cell_is_masked_in_the_answer_unless_lavida_repeats_itself():
    canvas = canvas_of((4, 3))
    u = torch.full(canvas.shape, 0.5)
    u[:, 0] = 0.1  # a prompt cell in the first row, padding in the second
    u[:, 4] = 0.2
    batch = Batch(canvas, torch.zeros_like(u), u)
    rule = objective({"preset": "lavida", "complementary": False})
    assert noised(batch, rule, MASK).canvas.masked.nonzero().tolist() == [[0, 4], [1, 4]]
    rule = dataclasses.replace(rule, compat="lavida")
    assert not bool(noised(batch, rule, MASK).canvas.masked.any())


def test_exactly_k_cells_of_the_answer_unless_efficient_dlm_repeats_itself():
    rule = objective({"preset": "efficient_dlm", "block": 0, "half_life": None})
    published = dataclasses.replace(rule, compat="efficient_dlm")
    short = 0
    for seed in range(40):
        canvas = canvas_of((8, 4), prompt=6)
        u = uniform(torch.tensor(seed), torch.arange(2)[:, None], canvas.position)
        batch = Batch(canvas, torch.full_like(u, 0.5), u)
        assert noised(batch, rule, MASK).canvas.masked.sum(1).tolist() == [4, 2]
        short += int(noised(batch, published, MASK).canvas.masked.sum() != 6)
    assert short > 10


def test_a_block_has_its_own_time():
    rule = objective({"preset": "bd3", "block": 2})
    canvas = with_context(canvas_of((6, 5)), 2)
    for times in ("golden", "stratified", "independent"):
        made = with_noise(canvas, torch.arange(2), 0, dataclasses.replace(rule, times=times), 2)
        found = {}
        for row, cell in (canvas.block > 0).nonzero().tolist():
            place = row, int(canvas.block[row, cell])
            found.setdefault(place, set()).add(float(made.time[row, cell]))
        assert all(len(times) == 1 for times in found.values())
        assert len(set.union(*found.values())) == len(found) == 6


def test_stratified_times_come_one_from_each_part():
    canvas = canvas_of((3,) * 8)
    rule = objective({"times": "stratified"})
    made = with_noise(canvas, torch.arange(16, 24), 0, rule, strata=8)
    assert sorted((made.time[:, 0] * 8).long().tolist()) == list(range(8))
    alone = with_noise(canvas.select(torch.tensor([3])), torch.tensor([19]), 0, rule, strata=8)
    assert torch.equal(alone.time[0], made.time[3])


def revision(corrected):
    canvas = canvas_of((5, 4))
    u = uniform(torch.arange(2)[:, None], canvas.position).double()
    replaced = canvas.writable & (canvas.position % 2 == 0)
    given = torch.full_like(canvas.ids, 3)
    time = torch.tensor([[0.4], [0.7]]).expand_as(u).double()
    return Batch(canvas, time, u, given=given, replaced=replaced, corrected=corrected)


@pytest.mark.parametrize("compat", ["none", "rediff"])
def test_revision_adds_the_means_of_masked_replaced_and_other_cells(compat):
    batch = revision(torch.tensor([False, True]))
    rule = objective({"preset": "rediff", "compat": compat})
    noisy = noised(batch, rule, MASK)
    model = Table(*batch.canvas.shape)
    canvas, p = batch.canvas, mask_probability(batch.time)
    ce = cross_entropy(model.logits.flatten(0, 1), canvas.ids.flatten(), reduction="none")
    ce = ce.view_as(p)
    masked = canvas.writable & (batch.u < p)
    masked[1] = False
    replaced = batch.replaced & ~masked
    kept = canvas.writable & ~masked & ~replaced
    assert torch.equal(noisy.canvas.masked, masked)
    shown = torch.where(masked, MASK, torch.where(replaced, 3, canvas.ids))
    assert torch.equal(noisy.canvas.ids, shown)
    expected = sum((ce / p)[0][group[0]].mean() for group in (masked, replaced, kept))
    divide = p[1] if compat == "rediff" else 1
    expected = (expected + (ce[1] / divide)[replaced[1]].mean()) / 2
    loss = batch_loss(model, batch, rule)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)


@pytest.mark.parametrize("compat", ["none", "dparallel"])
@pytest.mark.parametrize("time", [0.0, 0.4, 0.7, 0.99])
def test_dparallel_scores_the_frontier_and_forces_certainty(time, compat):
    lengths, size = (5, 4), 2
    rule = objective({"preset": "dparallel", "frontier": size, "compat": compat})
    batch = batch_of(rule, canvas_of(lengths), time)
    model = Table(*batch.canvas.shape)
    with torch.no_grad():
        model.logits.mul_(3)
        model.logits.scatter_add_(2, batch.canvas.ids[..., None], torch.full_like(model.logits, 4))
    noisy, p, expected = noised(batch, rule, MASK), 0.5 * (1 - rule.eps) + rule.eps, 0.0
    for copy in range(2):
        for row, cells in enumerate(lengths):
            blocks = cells // size + 1 if compat == "dparallel" else math.ceil(cells / size)
            chosen = int(time * blocks)
            ce, entropy = [], []
            for offset in range(cells):
                at = row + 2 * copy, 2 + offset
                half = (float(batch.u[at]) < p) != bool(copy)
                scored = offset // size == chosen and half
                assert bool(noisy.scored[at]) == scored
                assert bool(noisy.canvas.masked[at]) == (scored or offset // size > chosen)
                logits, target = model.logits[at].detach(), int(batch.canvas.ids[at])
                if scored:
                    ce.append(float(-logits.log_softmax(0)[target]))
                    soft = (logits / 0.5).softmax(0)
                    if int(logits.argmax()) == target:
                        entropy.append(float(-(soft * soft.log()).sum()))
            for weight, values in ((1.0, ce), (2.0, entropy)):
                expected += weight * math.fsum(values) / max(1, len(values)) / len(lengths)
    assert float(batch_loss(model, batch, rule).detach()) == pytest.approx(expected, rel=1e-6)


def test_flat_is_the_mean_over_the_whole_answer_whatever_shows_noise():
    rule = objective("flat")
    batch = batch_of(rule, canvas_of((5, 3)))
    model = Table(*batch.canvas.shape)
    canvas = batch.canvas
    noisy = noised(batch, rule, MASK)
    masked = canvas.writable & (batch.u < mask_probability(batch.time))
    assert 0 < int(masked.sum()) < 8
    assert torch.equal(noisy.canvas.masked, masked)
    assert torch.equal(noisy.canvas.ids, torch.where(masked, 3, canvas.ids))
    logits = model.logits[canvas.writable].detach()
    expected = cross_entropy(logits, canvas.ids[canvas.writable])
    assert float(batch_loss(model, batch, rule).detach()) == pytest.approx(
        float(expected), rel=1e-9
    )


@torch.inference_mode()
def test_next_tokens_are_predicted_under_causal_attention(model):
    model.config.shift = True
    pairs = [([31], [40, 41, 42]), ([32, 33], [50, 51])]
    rule = objective("autoregressive")
    canvas = collate([packed_row([7, 30], pairs, 1)], 1)
    batch = with_noise(canvas, torch.zeros(1, dtype=torch.long), 3, rule)
    noisy = noised(batch, rule, model.config.mask_token_id)
    assert torch.equal(noisy.canvas.ids, canvas.ids) and not bool(noisy.canvas.masked.any())
    total = 0.0
    for prompt, answer in pairs:
        ids = torch.tensor([[7, 30, *prompt, *answer]])
        logits = model(input_ids=ids, attention_layout="causal").logits[0, -len(answer) :]
        total += float(cross_entropy(logits, torch.tensor(answer), reduction="sum"))
    assert float(batch_loss(model, batch, rule)) == pytest.approx(total / 5, rel=1e-9)


def test_copies_of_an_answer_are_no_autoregressive_rows():
    canvas = paired(canvas_of())
    half = torch.full(canvas.shape, 0.5)
    with pytest.raises(SettingError, match="every answer once"):
        noised(Batch(canvas, half, half), objective("autoregressive"), MASK)


def recipe(**over):
    base = {"model": NEW_MODEL, "data": "tabletop", "output": "unused", "max_steps": 9}
    base |= {"batch_size": 2, "turns": 2, "row_cells": 160, "workers": 0}
    return build(Recipe, {**base, **over}, "a test")


def first_batch(model, **over):
    made = recipe(**over)
    return Batches(Tabletop(), model.processor, made, True, "train")[0]


def test_the_recipe_decides_over_end_of_text_cells(model):
    end, cells = model.processor.end_id, {}
    for padding in ("one", "random", "room"):
        rule = {"padding": padding, "complementary": False}
        canvas = first_batch(model, turns=1, row_cells=600, objective=rule).canvas
        cells[padding] = int((canvas.writable & (canvas.ids == end)).sum())
    assert cells["one"] == int(canvas.segment.amax(1).sum())
    assert cells["one"] <= cells["random"] < cells["room"]


def test_the_recipe_decides_over_replaced_cells(model):
    batch = first_batch(model, objective={"preset": "rediff", "replace": 0.3})
    share = float(batch.replaced.sum() / batch.canvas.writable.sum())
    assert 0.1 < share < 0.5
    assert set(batch.given.flatten().tolist()) <= set(plain_ids(model.processor))
    assert not bool(batch.corrected.any())
    with torch.inference_mode():
        loss = batch_loss(model, batch, objective("rediff"))
    assert math.isfinite(float(loss))


@pytest.mark.parametrize("name", ["autoregressive", "dparallel", "flat"])
@torch.inference_mode()
def test_the_parts_of_a_batch_add_up(model, name):
    model.config.shift = True
    made = recipe(objective={"preset": name, "frontier": 2 * (name == "dparallel")}, row_cells=300)
    ways = [Batches(Tabletop(), model.processor, made, True, "train", parts=n) for n in (1, 2)]
    tasks = [prepare(model, ways[1][number], made.objective) for number in range(2)]
    totals = sum(task.totals for task in tasks)
    shares = [float(task_loss(model, task, totals, made.objective)) for task in tasks]
    whole = float(batch_loss(model, ways[0][0], made.objective))
    assert whole > 0 and min(shares) > 0
    assert sum(shares) == pytest.approx(whole, rel=1e-6)


def test_the_recipe_decides_over_random_words(model):
    batch = first_batch(model, objective="flat")
    noisy = noised(batch, objective("flat"), model.config.mask_token_id)
    masked = noisy.canvas.masked
    assert bool(masked.any()) and model.config.mask_token_id not in noisy.canvas.ids[masked]
    assert len(set(noisy.canvas.ids[masked].tolist())) > 3
    with torch.inference_mode():
        assert math.isfinite(float(batch_loss(model, batch, objective("flat"))))


@torch.inference_mode()
def test_packed_answers_of_block_diffusion_equal_rows_of_their_own(model):
    model.config.attention_layout = "block"
    pairs = [([31], [40, 41, 42, 43, 44]), ([32, 33], [50, 51])]
    rule = objective({"preset": "bd3", "block": 2})
    losses = []
    for rows in (
        [packed_row([7, 30], pairs, 1)],
        [packed_row([7, 30], [pair], 1) for pair in pairs],
    ):
        for number, row in enumerate(rows, start=1):
            if len(rows) > 1:
                row.segment = [number * bool(s) for s in row.segment]
        canvas = with_context(collate(rows, 1), rule.block)
        index = torch.zeros(len(rows), dtype=torch.long)
        losses.append(float(batch_loss(model, with_noise(canvas, index, 3, rule), rule)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
