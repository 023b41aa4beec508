"""The loss of one batch: corrupt, score the masked cells, weigh."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.diffusion.corrupt import corrupt
from mmdiff.diffusion.losses import cell_weight, denominator, masked_loss
from mmdiff.diffusion.schedule import mask_probability, mask_slope

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel
    from mmdiff.training.batches import Batch
    from mmdiff.training.recipe import Objective


def batch_loss(model: MMDiffModel, batch: Batch, objective: Objective) -> Tensor:
    """Scalar loss of a batch on the model's device."""
    device = model.device
    time, u = batch.time.to(device), batch.u.to(device)
    clean = batch.canvas.to(device)
    p = mask_probability(time, objective.schedule, objective.eps)
    weighted_pair = objective.complementary and objective.weight != "one"
    if weighted_pair:  # 1 / (1 - p) needs a bound as 1 / p does
        p = p.clamp(max=1 - objective.eps)
    slope = mask_slope(time, objective.schedule, objective.eps)
    canvas, targets = corrupt(clean, u, p, model.config.mask_token_id)
    weight = cell_weight(p, canvas.copy, objective.weight, slope)
    if weighted_pair:  # each half estimates the bound by itself: keep their mean
        weight = weight / 2
    divide = denominator(
        canvas.writable, canvas.masked, canvas.copy, objective.denominator, canvas.segment
    )
    masked = canvas.masked
    per_cell = divide.expand_as(masked)[masked]
    answer = targets[masked], weight[masked], per_cell
    if not objective.anchors or batch.anchor_cells is None or batch.anchor_words is None:
        return masked_loss(model.score(canvas, masked), *answer)
    embeds = model.embed(canvas)
    named = objective.anchors * anchor_loss(model, embeds.flatten(0, 1), batch)
    if not bool(canvas.writable.any()):  # pictures alone: the backbone has nothing to learn
        return named
    loss = masked_loss(model.score(canvas, masked, embeds), *answer)
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
