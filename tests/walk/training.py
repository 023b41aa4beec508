"""Losses, masks and likelihood against published numbers, from stored draws and logits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.config import build
from mmdiff.decoding.guide import Guided
from mmdiff.diffusion.arrange import paired, with_context
from mmdiff.diffusion.likelihood import estimate, published_counts
from mmdiff.diffusion.losses import cart_weight, cross_entropy, shift_right
from mmdiff.diffusion.schedule import stratified_times
from mmdiff.training.batches import Batch
from mmdiff.training.objective import Noised, batch_loss, noised, weights
from mmdiff.training.recipe import Objective
from tests.walk.core import Entry

CPU = torch.device("cpu")


class Fixture:
    """The JSON file of an entry: leaves are read or compared, and none may be forgotten."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.data = entry.settings("data")
        self.used: set[tuple[str, ...]] = set()

    def __getitem__(self, path: str | tuple[str, ...]) -> Any:
        """A tensor (float64, long) for a list, a number or text as it is."""
        path = (path,) if isinstance(path, str) else path
        value = self.data
        for key in path:
            value = value[key]
        self.used.add(path)
        if not isinstance(value, list) or (value and isinstance(value[0], str)):
            return value
        made = torch.tensor(value)
        return torch.tensor(value, dtype=torch.float64) if made.is_floating_point() else made

    def compare(self, got: Any, *path: str, precision: str = "float64") -> None:
        """Note how far `got` lies from a leaf: exact for integers."""
        expected = torch.as_tensor(self[path])
        got = torch.as_tensor(got).detach().reshape(expected.shape).to(expected.dtype)
        if expected.is_floating_point():
            limits = {"atol": 0.0} | self.entry.facts["tolerance"][precision]
            error = float((got - expected).abs().max())
            good = torch.allclose(got, expected, **limits)
        else:
            error, good = float((got != expected).sum()), torch.equal(got, expected)
        name = ".".join(path)
        self.entry.note(name, "passed" if good else "failed", [name], error)

    def finish(self) -> None:
        """Whatever was not looked at is a failure; text is for people."""

        def leaves(value: Any, path: tuple[str, ...]) -> None:
            if isinstance(value, dict):
                for key, each in value.items():
                    leaves(each, (*path, key))
            elif path not in self.used and value is not None and not isinstance(value, str):
                name = ".".join(path)
                self.entry.note(name, "failed", [name], reason="never compared")

        leaves(self.data, ())


class Stored:
    """A model whose logits (B, L, V) are known; those of a context half are never asked for."""

    device = CPU

    def __init__(self, logits: Tensor, mask_id: int, shift: bool = False) -> None:
        self.config = SimpleNamespace(mask_token_id=mask_id, attention_layout="full")
        self.logits = shift_right(logits) if shift else logits

    def score(self, canvas: Canvas, need: Tensor) -> Tensor:
        cells = self.logits.shape[1]
        assert not bool(need[:, cells:].any())
        return self.logits[need[:, :cells]]


def objective(preset: str, **over: Any) -> Objective:
    return build(Objective, {"preset": preset, **over}, "golden")


def canvas_of(ids: Tensor, writable: Tensor, valid: Tensor | None = None) -> Canvas:
    zeros = torch.zeros_like(ids)
    return Canvas(
        ids=ids,
        masked=zeros.bool(),
        writable=writable,
        valid=torch.ones_like(writable) if valid is None else valid,
        block=writable.long(),
        segment=zeros,
        copy=zeros,
        position=torch.arange(ids.shape[1]).expand_as(ids),
    )


def batch_of(canvas: Canvas, time: Tensor, u: Tensor) -> Batch:
    """`time` is (B,) or per cell; rows of a complementary pair share their draws."""
    times = len(canvas.ids) // len(u)
    time = time[:, None].expand_as(u) if time.dim() == 1 else time
    return Batch(canvas, time.repeat(times, 1), u.repeat(times, 1))


def compare_loss(
    data: Fixture,
    path: tuple[str, ...],
    batch: Batch,
    rule: Objective,
    logits: Tensor,
    mask_id: int,
    shift: bool = False,
) -> Noised:
    """Compare the loss and, where stored, each cell's share of it; returns the noised batch."""
    model: Any = Stored(logits, mask_id, shift)
    noisy = noised(batch, rule, mask_id)
    data.compare(batch_loss(model, batch, rule), *path, "loss")
    stored = data.data
    for key in path:
        stored = stored[key]
    if "nlls" in stored:
        scored = noisy.scored
        without = mask_id if rule.without_mask_token else None
        ce = cross_entropy(model.score(noisy.canvas, scored), noisy.targets[scored], without)
        each = torch.zeros_like(noisy.p)
        each[scored] = ce * weights(model, batch, noisy, rule)[scored]
        data.compare(each[:, : logits.shape[1]], *path, "nlls")
    return noisy


def llada(entry: Entry) -> None:
    data = Fixture(entry)
    ids, mask_id = data["input_ids"], data["mask_id"]
    columns = torch.arange(ids.shape[1])
    answer = columns >= data["prompt_lengths"][:, None]
    cases = (("pretrain", "llada_pretrain", torch.ones_like(answer)), ("sft", "llada", answer))
    for name, preset, writable in cases:
        batch = batch_of(canvas_of(ids, writable), data["t"], data["uniform"])
        rule = objective(preset, eps=data["eps"])
        noisy = compare_loss(data, (name,), batch, rule, data[name, "logits"], mask_id)
        data.compare(noisy.canvas.ids, name, "noisy_ids")
        data.compare(noisy.p[:, 0], "p_mask")
    data.compare(noisy.canvas.masked, "sft", "masked")
    data.finish()


def lavida(entry: Entry) -> None:
    data = Fixture(entry)
    ids, labels = data["input_ids"], data["labels"]
    rows = len(ids)
    for name, case in data.data.items():
        if not isinstance(case, dict):
            continue
        batch = batch_of(paired(canvas_of(ids, labels != -100)), data[name, "t"],
                         data[name, "uniform"])  # fmt: skip
        rule = objective("lavida", compat="lavida")
        logits = data[name, "logits_2b"]
        noisy = compare_loss(data, (name,), batch, rule, logits, mask_id=-1)
        masked = noisy.canvas.masked
        data.compare(noisy.p[:rows, 0], name, "p_mask")
        data.compare(masked[:rows], name, "masked_first")
        data.compare(masked[rows:], name, "masked_second")
        data.compare(torch.where(masked, labels.repeat(2, 1), -100), name, "labels_2b")
        if case["prefix_length"] is not None:
            first = batch.canvas.writable.long().argmax(1)
            data.compare(first.view(2, rows), name, "prefix_length")
    data.finish()


def mdlm(entry: Entry) -> None:
    data = Fixture(entry)
    ids, mask_id = data["x0"], data["mask_id"]
    every = torch.ones_like(ids, dtype=torch.bool)
    rows, eps = len(ids), Objective().eps
    assert data["neg_infinity"] < -1e5  # as good as leaving the mask token out
    for name in data.data["cases"]:
        path = ("cases", name)
        draw = data[*path, "eps_draw"]
        stratified = data[*path, "antithetic_sampling"]
        time = stratified_times(draw, torch.arange(rows), rows) if stratified else draw
        importance = data[*path, "importance_sampling"]
        changed = data[*path, "change_of_variables"]
        over: dict[str, Any] = {"low": data["sampling_eps"]}
        if importance or changed:
            over |= {"schedule": "mdlm_log", "compat": "mdlm"}
        elif name.startswith("cosine"):
            over["schedule"] = "mdlm_cosine"
        canvas = canvas_of(ids, every, data["attention_mask"] > 0)
        batch = batch_of(canvas, time, data[*path, "uniform"])
        rule = objective("mdlm", **over)
        noisy = compare_loss(data, path, batch, rule, data[*path, "logits"], mask_id)
        t, p = noisy.time[:, 0], noisy.p[:, 0]
        # Importance sampling notes the time at which the log-linear schedule has this p; a change
        # of variables feeds the network t itself.
        data.compare(p / (1 - eps) if importance else t, *path, "t")
        data.compare(t if changed else -torch.log1p(-p), *path, "sigma")
        data.compare(noisy.canvas.ids, *path, "xt")
    data.finish()


def bd3lm(entry: Entry) -> None:
    data = Fixture(entry)
    ids, mask_id, size = data["x0"], data["mask_id"], data["block_size"]
    length = ids.shape[1]
    canvas = with_context(canvas_of(ids, torch.ones_like(ids, dtype=torch.bool)), size)
    for name in data.data["cases"]:
        path = ("cases", name)
        draw = data[*path, "eps_draw"]
        strata = draw.numel()
        time = stratified_times(draw, torch.arange(strata).view_as(draw), strata)
        time = time.repeat_interleave(size, 1)[:, :length].repeat(1, 2)
        u = data[*path, "uniform"].clone()
        u[:, 0] = 1.0  # the first cell counts, and is never masked
        low, high = data[*path, "eps_min"], data[*path, "eps_max"]
        weight = "one" if low > 0.5 else "inverse_p"
        rule = objective("bd3", block=size, low=low, high=high, weight=weight)
        batch = batch_of(canvas, time, u.repeat(1, 2))
        noisy = compare_loss(data, path, batch, rule, data[*path, "logits"], mask_id)
        data.compare(noisy.time[:, :length], *path, "t")
        data.compare(noisy.canvas.ids, *path, "x_input")
    data.finish()


def dimple(entry: Entry) -> None:
    data = Fixture(entry)
    ids, mask_id = data["input_ids"], data["mask_id"]
    writable = data["labels"] != -100
    data.compare(writable, "mask_locations")
    for name in data.data["cases"]:
        path = ("cases", name)
        dual = len(data[*path, "x_t"]) > len(ids)
        canvas = canvas_of(ids, writable)
        batch = batch_of(paired(canvas) if dual else canvas, data[*path, "t_draw"],
                         data[*path, "uniform"])  # fmt: skip
        rule = objective("dimple", complementary=dual)
        noisy = compare_loss(data, path, batch, rule, data[*path, "logits"], mask_id, shift=True)
        data.compare(noisy.canvas.ids, *path, "x_t")
    data.finish()


def dllm(entry: Entry) -> None:
    data = Fixture(entry)
    ids, mask_id = data["input_ids"], data["mask_id"]
    kinds = {"token": "answer", "sequence": "row", "batch": "examples"}
    batch = batch_of(canvas_of(ids, data["labels"] != -100), data["t_draw"], data["uniform"])
    for name in data.data["cases"]:
        kind, _, shift = name.partition("_")
        rule = objective("dllm", denominator=kinds[kind], compat="dllm")
        path = ("cases", name)
        noisy = compare_loss(data, path, batch, rule, data["logits"], mask_id, shift == "shift")
    data.compare(noisy.canvas.ids, "x_t")
    masked = data["cart", "masked"] > 0
    position = torch.arange(masked.shape[1]).expand_as(masked)
    see = torch.ones(*masked.shape, masked.shape[1], dtype=torch.bool)
    got = cart_weight(masked, position, see, data["cart", "p"])
    data.compare(got, "cart", "weights_float32", precision="float32")
    data.finish()


def position_dependent(entry: Entry) -> None:
    data = Fixture(entry)
    ids, mask_id = data["input_ids"], data["mask_id"]
    rows, length = ids.shape
    for name in data.data["cases"]:
        path = ("cases", name)
        u = data[*path, "uniform"].float()
        size = u.shape[1]
        sequence = name.startswith("sequence")
        canvas = canvas_of(ids, data["loss_mask"] > 0)
        canvas.block = (1 + torch.arange(length) // size).expand_as(ids)
        time = data[*path, "m_draw"].float().view(rows, -1).repeat_interleave(size, 1)
        rule = objective(
            "efficient_dlm",
            compat="efficient_dlm",
            half_life=data["half_life_ratio"],
            eps=data["eps"],
            block=0 if sequence else size,
            at_least_one=sequence,
        )
        batch = batch_of(canvas, time[:, :length], u.view(rows, -1)[:, :length])
        noisy = noised(batch, rule, mask_id)
        data.compare(noisy.canvas.ids, *path, "noisy_ids")
        data.compare(noisy.canvas.masked, *path, "masked")
        data.compare(noisy.p, *path, "p_mask", precision="float32")
    data.finish()


def log_likelihood(entry: Entry) -> None:
    data = Fixture(entry)
    prompt, answer, mask_id = data["prompt"], data["answer"], data["mask_id"]
    head, places, mix = data["toy", "head"], data["toy", "pos"], data["toy", "mix"]
    cells, size = len(answer), data["batch_size"]
    counts = torch.cat([published_counts(int(k), cells, size) for k in data["k_draws"]])
    assert len(counts) == data["mc_num"]
    masks = (torch.arange(cells) < counts[:, None]).gather(1, data["permutations"])

    def logits(ids: Tensor) -> Tensor:
        words = head[ids]
        return words + places + mix * words.mean(1, keepdim=True)

    class Toy:
        calls, start = 1, 0

        def __init__(self, model: Any, canvas: Canvas) -> None:
            pass

        def score(self, canvas: Canvas, need: Tensor) -> Tensor:
            return logits(canvas.ids)[need]

    model: Any = SimpleNamespace(config=SimpleNamespace(mask_token_id=mask_id))
    for scale in data.data["by_cfg_scale"]:
        path = ("by_cfg_scale", scale)
        masked = torch.cat([torch.zeros(len(masks), len(prompt)).bool(), masks], 1)
        ids = torch.where(masked, mask_id, torch.cat([prompt, answer]))
        data.compare(ids, *path, "perturbed")
        data.compare(logits(ids), *path, "logits_cond")
        canvas = canvas_of(ids, masked)
        canvas.masked, canvas.prompt_length = masked, len(prompt)
        guided = Guided(Toy, model, canvas, float(scale))
        made = estimate(guided.score(canvas, canvas.masked), answer, masks, counts)
        data.compare(-made.nll, *path, "log_likelihood")
    data.finish()
