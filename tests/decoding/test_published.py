"""Random numbers in the order of published code."""

import torch

from mmdiff.decoding.draws import DRAWS
from mmdiff.decoding.settings import Decoding
from mmdiff.diffusion.schedule import origin_chance


def test_dream_origin_draws_the_cells_before_their_tokens():
    """Restated: a uniform number per masked cell, then tokens for the chosen cells alone."""
    logits = torch.randn(40, 9, generator=torch.Generator().manual_seed(1))
    settings = Decoding(steps=8, eps=1e-2, accept="origin", temperature=0.7)
    step = torch.full((40,), 3)
    torch.manual_seed(5)
    t = torch.linspace(1, 1e-2, 9)
    chosen = torch.rand(40) < 1 - t[4] / t[3]
    expected = torch.distributions.Categorical(logits=logits[chosen] / 0.7).sample()
    torch.manual_seed(5)
    draws = DRAWS.get("dream")(torch.zeros_like(step), step, torch.arange(40))
    tokens, _ = draws.tokens(logits, settings)
    assert 0 < int(chosen.sum()) < 40
    assert torch.equal(tokens[chosen], expected)
    assert torch.equal(draws.uniform() < origin_chance(step, 8, 1e-2), chosen)
