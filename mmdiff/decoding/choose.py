"""Which proposed cells are accepted now. Rules are small classes; rows never influence each other.

An order scores cells; an accept rule takes the best of them. All scores are (B, L) with -inf in
cells that are not open.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.draws import Draws, top
from mmdiff.decoding.propose import Proposal
from mmdiff.decoding.settings import Decoding, check_name
from mmdiff.diffusion.schedule import (
    REVEAL_SCHEDULES,
    origin_chance,
    rate_counts,
    reveal_counts,
    timestep_counts,
)
from mmdiff.errors import SettingError
from mmdiff.registry import Registry

SCHEDULES = (*REVEAL_SCHEDULES, "timestep", "rate")


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
    """A rule with options of its own names them and their defaults in `options`; one with a method
    `see` is given what the model said (Seen) before it is called."""

    def __init__(self, settings: Decoding, canvas: Canvas, **options: Any) -> None: ...

    def __call__(
        self, score: Tensor, probability: Tensor, canvas: Canvas, rows: Tensor, draws: Draws
    ) -> Tensor:
        """(b, L) bool from order scores and probabilities (b, L) of the rows still open; `rows`
        (b,) are their numbers in the whole batch."""


ACCEPTS: Registry[type[Accept]] = Registry(
    "accept",
    modules=tuple(
        f"mmdiff.decoding.{n}" for n in ("maskgit", "confident", "saber", "klass", "policy")
    ),
)


@ACCEPTS.register("schedule")
class Scheduled:
    """The n_i best cells of step i: `steps` per block, shaped by `schedule` (reveal_counts)."""

    def __init__(self, settings: Decoding, canvas: Canvas) -> None:
        check_name("schedule", settings.schedule, SCHEDULES)
        self.settings = settings
        self.by_block = [
            [self._counts(b, masks) for b, masks in enumerate(row[1:])]
            for row in masks_by_block(canvas)
        ]
        self.quota = [[n for counts in row for n in counts] for row in self.by_block]
        self.step = [0] * len(self.quota)

    def _counts(self, block: int, masks: int) -> list[int]:
        settings = self.settings
        steps = settings.steps_of_block(block) or masks
        if settings.schedule == "rate":
            cells = settings.block_length or settings.max_new_tokens
            return rate_counts(masks, cells, settings.steps_of_block(block) or cells)
        if settings.schedule == "timestep":
            return timestep_counts(masks, steps, settings.eps, at_least=not settings.compat)
        return reveal_counts(masks, steps, settings.schedule, settings.shift)

    def __call__(
        self, score: Tensor, probability: Tensor, canvas: Canvas, rows: Tensor, draws: Draws
    ) -> Tensor:
        counted = torch.tensor(self.counts(canvas, rows), device=score.device)
        if self.settings.order == "left_to_right":  # where the block ends there is nothing to take
            counted = torch.minimum(counted, (score > float("-inf")).sum(1))
        return draw(score, probability, counted, self.settings, draws)

    def counts(self, canvas: Canvas, rows: Tensor) -> list[int]:
        """How many cells each open row accepts now; called once a step."""
        counts = []
        for row in rows.tolist():
            counts.append(self.quota[row][min(self.step[row], len(self.quota[row]) - 1)])
            self.step[row] += 1
        return counts


def masks_by_block(canvas: Canvas) -> list[list[int]]:
    """Masked cells of every row by block number, from 0."""
    numbers = range(int(canvas.block.max()) + 1)
    counts = [((canvas.block == b) & canvas.masked).sum(1) for b in numbers]
    made: list[list[int]] = torch.stack(counts, dim=1).tolist()
    return made


def draw(
    score: Tensor, probability: Tensor, counts: Tensor, settings: Decoding, draws: Draws
) -> Tensor:
    """(b, L) bool: counts (b,) cells of each row, the best or, above order temperature 0, drawn."""
    heat = settings.order_temperature
    if heat and settings.order == "confidence":  # Dream tempers probabilities
        score = torch.where(score > float("-inf"), probability, score)
    return draws.choose(score, counts, heat)


@ACCEPTS.register("dynamic")
class Dynamic(Scheduled):
    """Every cell with probability above `threshold` where these are as many as step i of the block
    has by schedule, the n_i best elsewhere (SDAR `generate.py`, low_confidence_dynamic)."""

    def __init__(self, settings: Decoding, canvas: Canvas) -> None:
        super().__init__(settings, canvas)
        self.taken: Counter[tuple[int, int]] = Counter()  # steps by row and block

    def __call__(
        self, score: Tensor, probability: Tensor, canvas: Canvas, rows: Tensor, draws: Draws
    ) -> Tensor:
        counted = torch.tensor(self.counts(canvas, rows), device=score.device)
        sure = (score > float("-inf")) & (probability > self.settings.threshold)
        enough = sure.sum(1) >= counted
        best = draws.choose(score, counted, self.settings.order_temperature)
        return torch.where(enough[:, None], sure, best)

    def counts(self, canvas: Canvas, rows: Tensor) -> list[int]:
        """Blocks end early, so each counts its own steps."""
        counts = []
        for key in zip(rows.tolist(), canvas.open_block()[:, 0].tolist(), strict=True):
            steps = self.by_block[key[0]][key[1] - 1]
            counts.append(steps[min(self.taken[key], len(steps) - 1)])
            self.taken[key] += 1
        return counts


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


@ACCEPTS.register("factor")
class Factor:
    """The n most probable cells, n as large as possible with p_(j) >= 1 - factor / (j + 1) for all
    j <= n; always the first (Fast-dLLM's factor decoding, arXiv:2505.22618)."""

    def __init__(self, settings: Decoding, canvas: Canvas) -> None:
        self.factor = settings.factor
        # Published code accepts the last open cell even where it alone fails.
        self.last_passes = settings.compat == "fast_dllm"

    def __call__(
        self, score: Tensor, probability: Tensor, canvas: Canvas, rows: Tensor, draws: Draws
    ) -> Tensor:
        is_open = score > float("-inf")
        ranked = torch.where(is_open, probability, -1.0).sort(dim=1, descending=True).values
        place = torch.arange(1, score.shape[1] + 1, device=score.device)
        passes = ranked >= 1 - self.factor / (place + 1)
        passes[:, 0] = True
        count = passes.long().cumprod(1).sum(1)
        cells = is_open.sum(1)
        if self.last_passes:
            count = torch.where(count == cells - 1, cells, count)
        return top(score, torch.minimum(count, cells))


@ACCEPTS.register("entropy_bound")
class EntropyBound:
    """The cells of lowest entropy whose sum, the largest left out, stays within `entropy_bound`:
    an upper bound on what accepting them at once can lose (EB-Sampler, arXiv:2505.24857)."""

    needs: ClassVar[dict[str, str]] = {"order": "entropy"}

    def __init__(self, settings: Decoding, canvas: Canvas) -> None:
        if settings.order != "entropy":
            raise SettingError(
                f"accept=entropy_bound sums entropies, but order={settings.order}; "
                "use it with order=entropy"
            )
        self.bound = settings.entropy_bound

    def __call__(
        self, score: Tensor, probability: Tensor, canvas: Canvas, rows: Tensor, draws: Draws
    ) -> Tensor:
        return within_bound(-score, score > float("-inf"), self.bound)


@ACCEPTS.register("entropy")
class LowEntropy:
    """Every cell of entropy `most` or less, and always the lowest one (dParallel,
    arXiv:2509.26488)."""

    options: ClassVar[dict[str, float]] = {"most": 0.5}
    needs: ClassVar[dict[str, str]] = {"order": "entropy"}

    def __init__(self, settings: Decoding, canvas: Canvas, most: float = 0.5) -> None:
        if settings.order != "entropy" or not most >= 0:
            raise SettingError("accept=entropy takes most=0 or more and goes with order=entropy")
        self.most = most

    def __call__(
        self, score: Tensor, probability: Tensor, canvas: Canvas, rows: Tensor, draws: Draws
    ) -> Tensor:
        best = top(score, torch.ones_like(score[:, 0], dtype=torch.long))
        return best | (-score <= self.most)


def within_bound(entropy: Tensor, is_open: Tensor, bound: float) -> Tensor:
    """(B, L) bool: per row the most open cells, lowest entropy (B, L) first and ties from the left,
    such that the entropies of all but the last sum to at most `bound`; one at least."""
    ordered, cells = entropy.masked_fill(~is_open, float("inf")).sort(dim=1, stable=True)
    before = ordered.cumsum(1) - ordered  # NaN behind the open cells, which is within no bound
    return torch.zeros_like(is_open).scatter_(1, cells, before <= bound) & is_open


@ACCEPTS.register("origin")
class Origin:
    """Every cell by its own draw, with probability 1 - s/t between the times t > s of a step, all
    that is left in the last one (Dream's alg=origin, the ancestral sampler of MDLM)."""

    def __init__(self, settings: Decoding, canvas: Canvas) -> None:
        self.steps = settings.steps or settings.max_new_tokens
        self.eps = settings.eps

    def __call__(
        self, score: Tensor, probability: Tensor, canvas: Canvas, rows: Tensor, draws: Draws
    ) -> Tensor:
        is_open = score > float("-inf")
        accept = torch.zeros_like(is_open)
        own = draws.within(is_open)
        accept[is_open] = own.uniform() < origin_chance(own.step, self.steps, self.eps)
        return accept
