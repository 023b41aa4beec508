"""Which token each open cell would take, and how sure the model is. K flat (row, cell) pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmdiff.decoding.settings import Decoding
from mmdiff.diffusion.schedule import uniform


@dataclass
class Proposal:
    """Per flat cell: token (K,), its log-odds by the model itself (K,), logits (K, V)."""

    tokens: Tensor
    log_odds: Tensor
    logits: Tensor

    @property
    def probability(self) -> Tensor:
        return torch.sigmoid(self.log_odds)


def log_odds(logits: Tensor, tokens: Tensor) -> Tensor:
    """log p(token) - log(1 - p(token)) = -log sum_{j != a} exp(l_j - l_a), (K,) float32.

    Ranks like the probability but stays exact near 1, where probabilities tie.
    """
    logits = logits.float()
    own = logits.gather(1, tokens[:, None])
    others = logits.scatter(1, tokens[:, None], float("-inf"))
    return own[:, 0] - others.logsumexp(1)


def propose(logits: Tensor, key: tuple[Tensor, Tensor, Tensor], settings: Decoding) -> Proposal:
    """Tokens and confidence of K cells from logits (K, V).

    Temperature 0 takes the most likely token. Above, one uniform number per cell, a pure function
    of `key` = (row seed, step, cell), each (K,), picks from the tempered, filtered distribution;
    the confidence is always that of the untempered model (LLaDA `generate.py`).
    """
    if settings.temperature == 0:
        tokens = logits.argmax(1)
    else:
        u = uniform(*key).to(logits.device)
        tokens = sample(logits / settings.temperature, u, settings.top_p, settings.top_k)
    return Proposal(tokens, log_odds(logits, tokens), logits)


def sample(logits: Tensor, u: Tensor, top_p: float = 1.0, top_k: int = 0) -> Tensor:
    """(K,) tokens by inverse transform of u (K,) in softmax of filtered logits (K, V).

    top_k keeps the k most likely; top_p the smallest set whose probability reaches top_p.
    """
    if top_k == 0 and top_p == 1.0:
        return _invert(logits.float().softmax(1), u)
    logits, ids = logits.float().sort(dim=1, descending=True, stable=True)
    if top_k:
        logits[:, top_k:] = float("-inf")
    chance = logits.softmax(1)
    before = chance.cumsum(1) - chance
    chance = chance * (before < top_p)
    return ids.gather(1, _invert(chance, u)[:, None])[:, 0]


def _invert(weight: Tensor, u: Tensor) -> Tensor:
    """First index whose cumulative weight exceeds u times the total; never one of weight 0."""
    total = weight.cumsum(1, dtype=torch.float32)
    goal = u.float() * total[:, -1]
    index = torch.searchsorted(total, goal[:, None], right=True)[:, 0]
    last = (weight > 0).long().mul(torch.arange(weight.shape[1], device=u.device)).amax(1)
    return torch.minimum(index, last)
