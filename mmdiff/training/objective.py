"""The loss of one batch: corrupt, score the cells that count, weigh."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.diffusion.attention import Cells, allowed
from mmdiff.diffusion.corrupt import answers, corrupt, exact_share, halves, with_at_least_one
from mmdiff.diffusion.losses import (
    KEPT,
    MASKED,
    REPLACED,
    cart_weight,
    cell_weight,
    denominator,
    masked_loss,
)
from mmdiff.diffusion.schedule import log_ends, mask_probability, mask_slope

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
    shown, scored = clean, masked
    if batch.given is not None:
        assert batch.replaced is not None and batch.corrected is not None
        corrected = batch.corrected[:, None]
        masked = masked & ~corrected
        replaced = batch.replaced & clean.writable & ~masked
        shown = replace(clean, ids=torch.where(replaced, batch.given, clean.ids))
        rest = clean.writable if objective.replace else masked
        scored = torch.where(corrected, replaced, rest)
        group = group.masked_fill(replaced, REPLACED)
    canvas = corrupt(shown, masked, mask_id)
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


def batch_loss(model: MMDiffModel, batch: Batch, objective: Objective) -> Tensor:
    """Scalar loss of a batch on the model's device."""
    batch = batch.to(model.device)
    noisy = noised(batch, objective, model.config.mask_token_id)
    canvas, scored = noisy.canvas, noisy.scored
    weight = weights(model, batch, noisy, objective)
    divide = denominator(
        canvas.writable & canvas.valid,
        scored,
        canvas.copy,
        objective.denominator,
        canvas.segment,
        noisy.group,
    )
    per_cell = divide.expand_as(scored)[scored]
    without = model.config.mask_token_id if objective.without_mask_token else None
    answer = noisy.targets[scored], weight[scored], per_cell, without
    if not objective.anchors or batch.anchor_cells is None or batch.anchor_words is None:
        return masked_loss(model.score(canvas, scored), *answer)
    embeds = model.embed(canvas)
    named = objective.anchors * anchor_loss(model, embeds.flatten(0, 1), batch)
    if not bool(canvas.writable.any()):  # pictures alone: the backbone has nothing to learn
        return named
    loss = masked_loss(model.score(canvas, scored, embeds), *answer)
    return loss + named


def anchor_loss(model: MMDiffModel, embeds: Tensor, batch: Batch) -> Tensor:
    """How well picture cells, among all `embeds` (C, D), say by the model's own head what they
    show: the words of the object that has its centre there, end-of-text where none has.

    Mean cross-entropy over words plus that over empty cells. The picture then speaks the language
    of the backbone.
    """
    loss = embeds.new_zeros(())
    for cells, words in ((batch.anchor_cells, batch.anchor_words), (batch.empty_cells, None)):
        if cells is None or not cells.numel():
            continue
        logits = model.head(embeds[cells.to(embeds.device)]).float()
        end = torch.full_like(cells, model.config.eos_token_id)
        loss = loss + F.cross_entropy(logits, (end if words is None else words).to(embeds.device))
    return loss
