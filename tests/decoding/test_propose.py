"""Proposals against float64 loops: confidence, inverse sampling, filters."""

import math

import pytest
import torch

from mmdiff.decoding.draws import Draws, most_likely, sample
from mmdiff.decoding.propose import log_odds, propose
from mmdiff.decoding.settings import Decoding
from mmdiff.diffusion.schedule import uniform

INF = float("inf")
EDGES = [0.0, 2.0**-54, 2.0**-30, 0.5, 1 - 2.0**-30, 1 - 2.0**-53, 1.0]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact_log_odds(row, token):
    others = [x - row[token] for i, x in enumerate(row) if i != token and x > -INF]
    top = max(others)
    return -(top + math.log(math.fsum(math.exp(x - top) for x in others)))


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 40.0])
def test_log_odds_equals_float64(scale):
    logits = randn(50, 13) * scale
    logits[:, 4] = -INF
    tokens = logits.argmax(1)
    tokens[::3] = 7
    got = log_odds(logits, tokens)
    assert got.dtype == torch.float32
    for k in range(50):
        exact = exact_log_odds(logits[k].double().tolist(), int(tokens[k]))
        assert float(got[k]) == pytest.approx(exact, rel=1e-5, abs=1e-5)


def test_log_odds_is_the_logit_of_the_probability():
    logits = randn(20, 9).double()
    p = logits.softmax(1)[:, 3]
    expected = (p / (1 - p)).log().float()
    tokens = torch.full((20,), 3)
    torch.testing.assert_close(log_odds(logits, tokens), expected, rtol=1e-5, atol=1e-5)


def test_log_odds_ranks_where_probabilities_tie():
    peaks = torch.tensor([30.0, 45.0, 38.0, 90.0])
    logits = torch.cat([peaks[:, None], torch.zeros(4, 5)], dim=1)
    assert logits.softmax(1)[:, 0].tolist() == [1.0] * 4
    got = log_odds(logits, torch.zeros(4, dtype=torch.long))
    assert got.argsort().tolist() == peaks.argsort().tolist()
    torch.testing.assert_close(got, peaks - math.log(5))


@pytest.mark.parametrize("width", [1, 700, 4096, 4097, 5000])
@pytest.mark.parametrize("values", [2, 40, 10**6])
def test_most_likely_is_the_first_of_the_largest(width, values):
    logits = torch.randint(values, (30, width), generator=torch.Generator().manual_seed(0)).float()
    logits[1] = -INF
    logits[2, -1] = 2 * values
    for row, got in zip(logits.tolist(), most_likely(logits).tolist(), strict=True):
        assert got == row.index(max(row))


def test_log_odds_leaves_the_logits_as_they_were():
    logits = randn(3, 9)
    before = logits.clone()
    log_odds(logits, torch.tensor([0, 4, 8]))
    assert torch.equal(logits, before)


def test_a_lone_token_is_certain():
    logits = torch.tensor([[-INF, 2.0, -INF]])
    made = propose(logits, Draws(*(torch.zeros(1).long(),) * 3), Decoding())
    assert made.tokens.tolist() == [1]
    assert made.probability.tolist() == [1.0]
    assert made.log_odds.tolist() == [INF]


# Sampling


def brute_sample(row, u, top_p=1.0, top_k=0):
    """Inverse transform in float64, most likely first when filtering."""
    order = list(range(len(row)))
    if top_k or top_p < 1:
        order.sort(key=lambda i: (-row[i], i))
        order = order[: top_k or None]
    weight = [math.exp(row[i]) for i in order]
    chance = [w / math.fsum(weight) for w in weight]
    kept, before = [], 0.0
    for i, c in zip(order, chance, strict=True):
        if before < top_p and c > 0:
            kept.append((i, c))
        before += c
    goal, total = u * math.fsum(c for _, c in kept), 0.0
    for i, c in kept:
        total += c
        if total > goal:
            return i
    return kept[-1][0]


@pytest.mark.parametrize(
    ("top_p", "top_k"), [(1.0, 0), (0.7, 0), (0.05, 0), (1.0, 3), (0.8, 4), (1.0, 99), (0.999, 1)]
)
def test_sample_equals_the_loop(top_p, top_k):
    logits = randn(300, 12) * 2
    logits[:, 5] = -INF
    u = uniform(torch.arange(300))
    got = sample(logits, u, top_p, top_k).tolist()
    expected = [
        brute_sample(row, float(x), top_p, top_k)
        for row, x in zip(logits.double().tolist(), u, strict=True)
    ]
    # A float32 cumulative sum may step over a goal that lies within rounding of its edge.
    assert sum(a != b for a, b in zip(got, expected, strict=True)) <= 1


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.8, 0), (1.0, 3), (0.75, 4)])
def test_sampled_shares_follow_the_distribution(top_p, top_k):
    draws = 20_000
    row = torch.tensor([0.3, -1.0, 1.2, -INF, 0.0, 0.7])
    got = sample(row.expand(draws, 6), uniform(torch.arange(draws)), top_p, top_k)
    p = row.double().softmax(0)
    order = p.argsort(descending=True)
    before = p[order].cumsum(0) - p[order]
    if top_k:
        p[order[top_k:]] = 0
        before = before / p.sum()
    p[order[before >= top_p]] = 0
    expected = p / p.sum() * draws
    seen = torch.bincount(got, minlength=6).double()
    assert bool((seen[expected == 0] == 0).all())
    live = expected > 0
    freedom = int(live.sum()) - 1
    chi_square = float(((seen - expected)[live] ** 2 / expected[live]).sum())
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom) + 4


@pytest.mark.parametrize("u", EDGES)
@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.9, 0), (1.0, 4), (0.5, 2)])
def test_a_token_without_probability_is_never_taken(u, top_p, top_k):
    rows = torch.tensor(
        [
            [-INF, 1.0, 0.0, -INF, 2.0, -INF],
            [-INF, -INF, 0.0, -INF, -INF, -INF],
            [0.0, -INF, -INF, -INF, -INF, -INF],
            [-INF, -INF, -INF, -INF, -INF, 3.0],
            [0.0, 200.0, -INF, 0.0, -INF, 0.0],
        ]
    )
    got = sample(rows, torch.full((5,), u, dtype=torch.float64), top_p, top_k)
    for row, token in zip(rows, got.tolist(), strict=True):
        assert float(row.softmax(0)[token]) > 0


def test_a_large_vocabulary_with_most_tokens_forbidden():
    logits = torch.full((5, 50_000), -INF)
    logits[:, 100:40_000:7] = 0.0
    got = sample(logits, torch.tensor([0.0, 0.1, 0.5, 0.99, 1.0], dtype=torch.float64))
    assert all(100 <= t < 40_000 and (t - 100) % 7 == 0 for t in got.tolist())
    assert got.tolist() == sorted(got.tolist())


def test_the_narrowest_filters_take_the_most_likely():
    logits = randn(40, 9)
    best = logits.argmax(1)
    u = uniform(torch.arange(40))
    assert torch.equal(sample(logits, u, top_k=1), best)
    assert torch.equal(sample(logits, u, top_p=1e-9), best)
    tied = torch.zeros(1, 5)
    assert sample(tied, u[:1], top_k=1).tolist() == [0]


def test_the_input_is_left_alone():
    logits = randn(4, 6)
    before = logits.clone()
    key = (torch.zeros(4).long(), torch.zeros(4).long(), torch.arange(4))
    propose(logits, Draws(*key), Decoding(temperature=0.7, top_k=2, top_p=0.5))
    assert torch.equal(logits, before)


# Proposals


def test_temperature_zero_takes_the_most_likely_and_the_lowest_of_ties():
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    key = (torch.zeros(2).long(),) * 3
    assert propose(logits, Draws(*key), Decoding()).tokens.tolist() == [1, 0]


def test_confidence_is_that_of_the_untempered_model():
    logits = randn(30, 8)
    key = (torch.full((30,), 4), torch.full((30,), 2), torch.arange(30))
    made = propose(logits, Draws(*key), Decoding(temperature=3.0, top_k=5))
    rows = torch.arange(30)
    torch.testing.assert_close(made.probability, logits.softmax(1)[rows, made.tokens])
    assert not torch.equal(made.tokens, logits.argmax(1))


def test_tokens_are_a_function_of_seed_step_and_cell():
    logits, settings = randn(1, 50).repeat(60, 1), Decoding(temperature=1.0)
    seed, step, cell = torch.full((60,), 4), torch.full((60,), 2), torch.arange(60)
    whole = propose(logits, Draws(seed, step, cell), settings).tokens
    some = Draws(seed[20:27], step[20:27], cell[20:27])
    part = propose(logits[:7], some, settings).tokens
    assert torch.equal(whole[20:27], part)
    for other in ((seed + 1, step, cell), (seed, step + 1, cell), (seed, step, cell + 100)):
        assert not torch.equal(propose(logits, Draws(*other), settings).tokens, whole)


def test_temperature_sharpens_and_flattens():
    row, draws = torch.tensor([[0.0, 1.0]]).repeat(4000, 1), 4000
    key = (torch.zeros(draws).long(), torch.zeros(draws).long(), torch.arange(draws))
    for temperature in (0.25, 1.0, 4.0):
        made = propose(row, Draws(*key), Decoding(temperature=temperature))
        p = 1 / (1 + math.exp(-1 / temperature))
        error = math.sqrt(p * (1 - p) / draws)
        assert float(made.tokens.double().mean()) == pytest.approx(p, abs=4 * error)
