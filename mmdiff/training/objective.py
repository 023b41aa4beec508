"""The loss of one batch: corrupt, score the cells that count, weigh."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.diffusion.attention import Cells, allowed
from mmdiff.diffusion.corrupt import (
    answers,
    corrupt,
    exact_share,
    frontier,
    halves,
    with_at_least_one,
)
from mmdiff.diffusion.losses import (
    KEPT,
    MASKED,
    REPLACED,
    cart_weight,
    cell_weight,
    certainty,
    masked_loss,
    parts_of_denominator,
)
from mmdiff.diffusion.schedule import log_ends, mask_probability, mask_slope
from mmdiff.errors import SettingError

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel
    from mmdiff.training.batches import Batch
    from mmdiff.training.recipe import Objective


@dataclass
class Noised:
    """A batch as the model meets it; every tensor (B, L)."""

    canvas: Canvas
    targets: Tensor  # clean ids
    scored: Tensor  # bool: cells that the loss counts
    group: Tensor  # MASKED, REPLACED or KEPT
    time: Tensor  # t
    p: Tensor  # mask probability


def noised(batch: Batch, objective: Objective, mask_id: int) -> Noised:
    """The batch with its noise: masked cells, and where it has them other ids."""
    clean, u = batch.canvas, batch.u
    time = objective.low + (objective.high - objective.low) * batch.time
    p = mask_probability(time, objective.schedule, objective.eps)
    if _weighted_pair(objective):  # 1 / (1 - p) needs a bound as 1 / p does
        p = p.clamp(max=1 - objective.eps)
    masked = halves(chosen(clean, u, p, objective), clean.writable, clean.copy)
    group = torch.full_like(clean.ids, KEPT)
    noise: int | Tensor = mask_id
    shown, scored = clean, masked
    if objective.frontier:
        empty = objective.compat == "dparallel"
        inside, behind = frontier(clean, batch.time, objective.frontier, empty)
        scored = masked & inside
        masked = scored | behind
    elif objective.autoregressive:
        if bool((clean.copy[clean.writable] > 0).any()):  # later columns may tell the answer
            raise SettingError(
                "autoregressive needs every answer once, clean, behind a request of its own"
            )
        masked, scored = torch.zeros_like(masked), clean.writable
        shown = replace(clean, layout="causal")
    elif objective.noise == "uniform":
        assert batch.given is not None
        noise, scored = batch.given, clean.writable
    elif batch.given is not None:
        assert batch.replaced is not None and batch.corrected is not None
        corrected = batch.corrected[:, None]
        masked = masked & ~corrected
        replaced = batch.replaced & clean.writable & ~masked
        shown = replace(clean, ids=torch.where(replaced, batch.given, clean.ids))
        rest = clean.writable if objective.replace else masked
        scored = torch.where(corrected, replaced, rest)
        group = group.masked_fill(replaced, REPLACED)
    canvas = corrupt(shown, masked, noise)
    group = group.masked_fill(masked, MASKED)
    return Noised(canvas, clean.ids, scored & clean.valid, group, time, p)


def chosen(canvas: Canvas, u: Tensor, p: Tensor, objective: Objective) -> Tensor:
    """(B, L) bool: the cells that the objective's rule picks for copies 0 and 1."""
    if not (objective.exact or objective.at_least_one):
        return u < p
    among, group = canvas.writable & canvas.valid, answers(canvas, objective.block > 0)
    if objective.compat == "lavida":  # the least draw may be a prompt's, a picture's or padding's
        among, group = torch.ones_like(among), torch.zeros_like(group)
    if objective.compat == "efficient_dlm":  # of prompt cells, too, which then stay as they are
        among, group = canvas.valid, canvas.block if objective.block else torch.zeros_like(group)
    if objective.exact:
        least = int(objective.at_least_one)
        return exact_share(u, p, among, group, objective.half_life, least)
    return with_at_least_one(u, p, among, group)


def weights(model: MMDiffModel, batch: Batch, noisy: Noised, objective: Objective) -> Tensor:
    """(B, L) what each scored cell's cross-entropy is multiplied with."""
    canvas, p = noisy.canvas, noisy.p
    if objective.weight == "cart":
        every = Cells.of(canvas)
        see = allowed(every, every, canvas.layout or model.config.attention_layout)
        weight = cart_weight(canvas.masked, canvas.place, see, objective.cart)
    else:
        slope = mask_slope(noisy.time, objective.schedule, objective.eps)
        if objective.compat == "mdlm":  # takes log p(1) for 0
            slope = -log_ends(objective.eps)[0] * p
        if objective.compat == "dllm":
            p = p + 1e-6
        weight = cell_weight(p, canvas.copy, objective.weight, slope)
    if _weighted_pair(objective):  # each half estimates the bound by itself: keep their mean
        weight = weight / 2
    if batch.corrected is not None and objective.compat != "rediff":
        # Nothing is masked in these rows, so no mask probability weighs them.
        weight = torch.where(batch.corrected[:, None], 1.0, weight)
    return weight


def _weighted_pair(objective: Objective) -> bool:
    return objective.complementary and objective.weight in ("inverse_p", "elbo")


@dataclass
class Task:
    """A batch, or a part of one, ready to be scored.

    `own` (B, L) is each cell's part of its denominator; `totals` (3,), what the parts of one batch
    add up: the batch's part, anchored words, empty picture cells.
    """

    batch: Batch
    noisy: Noised
    weight: Tensor
    own: Tensor
    totals: Tensor


def prepare(model: MMDiffModel, batch: Batch, objective: Objective) -> Task:
    """The noise, weights and counts of a batch on the model's device; nothing runs yet."""
    batch = batch.to(model.device)
    noisy = noised(batch, objective, model.config.mask_token_id)
    canvas = noisy.canvas
    own, total = parts_of_denominator(
        canvas.writable & canvas.valid,
        noisy.scored,
        canvas.copy,
        objective.denominator,
        canvas.segment,
        noisy.group,
    )
    anchors = [batch.anchor_cells, batch.empty_cells] if objective.anchors else [None, None]
    counts = [float(total), *(0 if cells is None else cells.numel() for cells in anchors)]
    totals = torch.tensor(counts, dtype=torch.float64, device=model.device)
    return Task(batch, noisy, weights(model, batch, noisy, objective), own, totals)


def task_loss(model: MMDiffModel, task: Task, totals: Tensor, objective: Objective) -> Tensor:
    """Scalar: this part's share of the loss of the batch that counts `totals` in all."""
    canvas, scored = task.noisy.canvas, task.noisy.scored
    targets = task.noisy.targets[scored]
    per_cell = (task.own * totals[0].clamp(min=1)).expand_as(scored)[scored]
    without = model.config.mask_token_id if objective.without_mask_token else None
    named = None
    if not objective.anchors or task.batch.anchor_words is None:
        logits = model.score(canvas, scored)
    else:
        embeds = model.embed(canvas)
        named = objective.anchors * anchor_loss(model, embeds.flatten(0, 1), task.batch, totals[1:])
        if not bool(canvas.writable.any()):  # pictures alone: the backbone has nothing to learn
            return named
        logits = model.score(canvas, scored, embeds)
    loss = masked_loss(logits, targets, task.weight[scored], per_cell, without)
    if objective.certainty:
        example = _examples(canvas)[scored]
        entropy = certainty(logits, targets, example, objective.certainty_temperature)
        loss = loss + objective.certainty * entropy / totals[0].clamp(min=1).to(entropy.dtype)
    return loss if named is None else loss + named


def _examples(canvas: Canvas) -> Tensor:
    """(B, L) long: a number for each copy of each answer of the batch."""
    row = torch.arange(len(canvas.ids), device=canvas.device)[:, None]
    return answers(canvas) + row * (int(canvas.segment.max()) + 1) * 3


def batch_loss(model: MMDiffModel, batch: Batch, objective: Objective) -> Tensor:
    """Scalar loss of a whole batch on the model's device."""
    task = prepare(model, batch, objective)
    return task_loss(model, task, task.totals, objective)


def anchor_loss(
    model: MMDiffModel, embeds: Tensor, batch: Batch, counts: Tensor | None = None
) -> Tensor:
    """How well picture cells, among all `embeds` (C, D), say by the model's own head what they
    show: the words of the object that has its centre there, end-of-text where none has.

    Mean cross-entropy over words plus that over empty cells, of which there are `counts` (2,) or
    those of this batch. The picture then speaks the language of the backbone.
    """
    loss = embeds.new_zeros(())
    for number, cells in enumerate((batch.anchor_cells, batch.empty_cells)):
        if cells is None or not cells.numel():
            continue
        cells = cells.to(embeds.device)
        logits = model.head(embeds[cells]).float()
        end = torch.full_like(cells, model.config.eos_token_id)
        words = end if number or batch.anchor_words is None else batch.anchor_words.to(end)
        count = cells.numel() if counts is None else counts[number].to(logits.dtype)
        loss = loss + F.cross_entropy(logits, words, reduction="sum") / count
    return loss
