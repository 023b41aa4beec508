"""Which token each open cell would take, and how sure the model is. K flat (row, cell) pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmdiff.decoding.draws import Draws
from mmdiff.decoding.settings import Decoding


@dataclass
class Proposal:
    """Per flat cell: token (K,), its log-odds (K,), and the logits (K, V) they were read from."""

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
    logits, place = logits.float(), tokens[:, None]
    own = logits.gather(1, place)
    logits.scatter_(1, place, float("-inf"))  # for a moment: a copy would cost as much as the sum
    others = logits.logsumexp(1)
    logits.scatter_(1, place, own)
    return own[:, 0] - others


def propose(logits: Tensor, draws: Draws, settings: Decoding) -> Proposal:
    """Tokens and confidence of K cells from logits (K, V): the most likely token at temperature 0,
    above it one that `draws` picks from the tempered, filtered distribution."""
    tokens, read = draws.tokens(logits, settings)
    return Proposal(tokens, log_odds(read, tokens), read)


def spread(values: Tensor, where: Tensor, empty: float) -> Tensor:
    """(B, L) from the K values of the cells marked in `where`."""
    out = torch.full(where.shape, empty, dtype=values.dtype, device=values.device)
    out[where] = values
    return out
