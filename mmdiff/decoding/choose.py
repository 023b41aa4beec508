"""Which proposed cells are accepted now. Rules are small classes; rows never influence each other.

An order scores cells; an accept rule takes the best of them. All scores are (B, L) with -inf in
cells that are not open.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.propose import Proposal
from mmdiff.decoding.settings import Decoding, check_name
from mmdiff.diffusion.schedule import REVEAL_SCHEDULES, reveal_counts, uniform
from mmdiff.registry import Registry


class Order(Protocol):
    def __call__(self, proposal: Proposal, key: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """(K,) scores, larger first; `key` is (row seed, step, cell)."""


ORDERS: Registry[Order] = Registry("order")


@ORDERS.register("confidence")
def confidence(proposal: Proposal, key: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Log-odds of the proposed token (LLaDA's low_confidence remasking)."""
    return proposal.log_odds


@ORDERS.register("margin")
def margin(proposal: Proposal, key: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """p1 - p2 of the two most likely tokens (Dream's topk_margin)."""
    top = proposal.logits.float().softmax(1).topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


@ORDERS.register("entropy")
def entropy(proposal: Proposal, key: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """sum p log p, the negative entropy (Dream)."""
    logp = proposal.logits.float().log_softmax(1)
    return (logp.exp() * logp.clamp(min=-1e4)).sum(1)


@ORDERS.register("random")
def random(proposal: Proposal, key: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    seed, step, cell = key
    return uniform(seed, step, cell, torch.ones_like(cell)).to(proposal.logits)


@ORDERS.register("left_to_right")
def left_to_right(proposal: Proposal, key: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return -key[2].to(proposal.logits)


class Accept(Protocol):
    def __init__(self, settings: Decoding, canvas: Canvas) -> None: ...

    def __call__(self, score: Tensor, probability: Tensor, canvas: Canvas, rows: Tensor) -> Tensor:
        """(b, L) bool from order scores and probabilities (b, L) of the rows still open; `rows`
        (b,) are their numbers in the whole batch."""


ACCEPTS: Registry[type[Accept]] = Registry("accept")


@ACCEPTS.register("schedule")
class Scheduled:
    """The n_i best cells of step i: `steps` per block, shaped by `schedule` (reveal_counts)."""

    def __init__(self, settings: Decoding, canvas: Canvas) -> None:
        check_name("schedule", settings.schedule, REVEAL_SCHEDULES)
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
        steps = self.settings.steps_of_block(block) or masks
        return reveal_counts(masks, steps, self.settings.schedule, self.settings.shift)

    def __call__(self, score: Tensor, probability: Tensor, canvas: Canvas, rows: Tensor) -> Tensor:
        counts = []
        for row in rows.tolist():
            counts.append(self.quota[row][min(self.step[row], len(self.quota[row]) - 1)])
            self.step[row] += 1
        return top(score, torch.tensor(counts, device=score.device))


@ACCEPTS.register("threshold")
class Threshold:
    """Every cell with probability >= threshold, and always the best one (Fast-dLLM,
    arXiv:2505.22618)."""

    def __init__(self, settings: Decoding, canvas: Canvas) -> None:
        self.threshold = settings.threshold

    def __call__(self, score: Tensor, probability: Tensor, canvas: Canvas, rows: Tensor) -> Tensor:
        is_open = score > float("-inf")
        best = top(score, torch.ones(len(score), dtype=torch.long, device=score.device))
        return best | (is_open & (probability >= self.threshold))


def top(score: Tensor, counts: Tensor) -> Tensor:
    """(B, L) bool: the counts[b] best cells of each row, ties to the lowest cell; never a -inf."""
    order = score.argsort(dim=1, descending=True, stable=True)
    place = torch.empty_like(order).scatter_(
        1, order, torch.arange(score.shape[1], device=score.device).expand_as(order)
    )
    return (place < counts[:, None]) & (score > float("-inf"))
