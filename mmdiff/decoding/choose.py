"""Which proposed cells are accepted now. Rules are small classes; rows never influence each other.

An order scores cells; an accept rule takes the best of them. All scores are (B, L) with -inf in
cells that are not open.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.draws import Draws, top
from mmdiff.decoding.propose import Proposal
from mmdiff.decoding.settings import Decoding, check_name
from mmdiff.diffusion.schedule import REVEAL_SCHEDULES, reveal_counts, timestep_counts
from mmdiff.registry import Registry


class Order(Protocol):
    def __call__(self, proposal: Proposal, draws: Draws) -> Tensor:
        """(K,) scores, larger first."""


ORDERS: Registry[Order] = Registry("order")


@ORDERS.register("confidence")
def confidence(proposal: Proposal, draws: Draws) -> Tensor:
    """Log-odds of the proposed token (LLaDA's low_confidence remasking)."""
    return proposal.log_odds


@ORDERS.register("margin")
def margin(proposal: Proposal, draws: Draws) -> Tensor:
    """p1 - p2 of the two most likely tokens (Dream's topk_margin)."""
    top = proposal.logits.float().softmax(1).topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


@ORDERS.register("entropy")
def entropy(proposal: Proposal, draws: Draws) -> Tensor:
    """sum p log(p + 1e-10), the negative entropy (Dream)."""
    p = proposal.logits.float().softmax(1)
    return (p * (p + 1e-10).log()).sum(1)


@ORDERS.register("random")
def random(proposal: Proposal, draws: Draws) -> Tensor:
    return draws.uniform().to(proposal.logits)


@ORDERS.register("left_to_right")
def left_to_right(proposal: Proposal, draws: Draws) -> Tensor:
    return -draws.cell.to(proposal.logits)


class Accept(Protocol):
    def __init__(self, settings: Decoding, canvas: Canvas) -> None: ...

    def __call__(
        self, score: Tensor, probability: Tensor, canvas: Canvas, rows: Tensor, draws: Draws
    ) -> Tensor:
        """(b, L) bool from order scores and probabilities (b, L) of the rows still open; `rows`
        (b,) are their numbers in the whole batch."""


ACCEPTS: Registry[type[Accept]] = Registry("accept", modules=("mmdiff.decoding.maskgit",))


@ACCEPTS.register("schedule")
class Scheduled:
    """The n_i best cells of step i: `steps` per block, shaped by `schedule` (reveal_counts)."""

    def __init__(self, settings: Decoding, canvas: Canvas) -> None:
        check_name("schedule", settings.schedule, (*REVEAL_SCHEDULES, "timestep"))
        self.settings = settings
        blocks = int(canvas.block.max())
        per_block = [
            ((canvas.block == b) & canvas.masked).sum(1).tolist() for b in range(1, blocks + 1)
        ]
        self.quota = [
            [n for b in range(blocks) for n in self._counts(b, per_block[b][row])]
            for row in range(canvas.ids.shape[0])
        ]
        self.step = [0] * len(self.quota)

    def _counts(self, block: int, masks: int) -> list[int]:
        settings = self.settings
        steps = settings.steps_of_block(block) or masks
        if settings.schedule == "timestep":
            return timestep_counts(masks, steps, settings.eps, at_least=not settings.compat)
        return reveal_counts(masks, steps, settings.schedule, settings.shift)

    def __call__(
        self, score: Tensor, probability: Tensor, canvas: Canvas, rows: Tensor, draws: Draws
    ) -> Tensor:
        counts = []
        for row in rows.tolist():
            counts.append(self.quota[row][min(self.step[row], len(self.quota[row]) - 1)])
            self.step[row] += 1
        counted = torch.tensor(counts, device=score.device)
        heat = self.settings.order_temperature
        if heat and self.settings.order == "confidence":  # Dream tempers probabilities
            score = torch.where(score > float("-inf"), probability, score)
        return draws.choose(score, counted, heat)


@ACCEPTS.register("threshold")
class Threshold:
    """Every cell with probability >= threshold, and always the best one (Fast-dLLM,
    arXiv:2505.22618)."""

    def __init__(self, settings: Decoding, canvas: Canvas) -> None:
        self.threshold = settings.threshold

    def __call__(
        self, score: Tensor, probability: Tensor, canvas: Canvas, rows: Tensor, draws: Draws
    ) -> Tensor:
        is_open = score > float("-inf")
        best = top(score, torch.ones(len(score), dtype=torch.long, device=score.device))
        return best | (is_open & (probability >= self.threshold))


@ACCEPTS.register("origin")
class Origin:
    """Every cell by its own draw, with probability 1 - s/t between the times t > s of a step, all
    that is left in the last one (Dream's alg=origin, the ancestral sampler of MDLM)."""

    def __init__(self, settings: Decoding, canvas: Canvas) -> None:
        self.steps = settings.steps or int(canvas.masked.sum(1).max())
        self.eps = settings.eps

    def __call__(
        self, score: Tensor, probability: Tensor, canvas: Canvas, rows: Tensor, draws: Draws
    ) -> Tensor:
        is_open = score > float("-inf")
        time = torch.linspace(1, self.eps, self.steps + 1)
        step = draws.step.clamp(max=self.steps - 1).cpu()
        chance = torch.where(step < self.steps - 1, 1 - time[step + 1] / time[step], 1.0)
        accept = torch.zeros_like(is_open)
        accept[is_open] = draws.uniform() < chance.to(score.device)
        return accept
