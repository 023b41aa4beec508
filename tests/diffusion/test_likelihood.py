"""The likelihood bound against exact enumeration of a tiny model."""

import math
from itertools import combinations, permutations

import pytest
import torch

from mmdiff.diffusion.likelihood import bound, mask_counts, random_masks

N, V = 3, 4
ANSWER = torch.tensor([2, 0, 3])
LOGITS = 2 * torch.randn(2**N, N, V, generator=torch.Generator().manual_seed(5)).double()


def score(masks):
    """Logits of the masked cells: any fixed function of the masked set."""
    name = (masks.long() * 2 ** torch.arange(N)).sum(1)
    return LOGITS[name][masks]


def cross_entropy(cell, masked):
    row = LOGITS[sum(2**i for i in masked), cell].tolist()
    return math.log(math.fsum(math.exp(x) for x in row)) - row[int(ANSWER[cell])]


def exact_by_orders():
    total = 0.0
    for order in permutations(range(N)):
        total += sum(cross_entropy(cell, order[k:]) for k, cell in enumerate(order))
    return total / math.factorial(N)


def exact_by_sets():
    """The form the estimator samples: k uniform, a uniform set of k cells, n / k."""
    total = 0.0
    for k in range(1, N + 1):
        sets = list(combinations(range(N), k))
        each = [N / k * sum(cross_entropy(i, s) for i in s) for s in sets]
        total += sum(each) / len(sets) / N
    return total


def test_both_exact_forms_agree():
    assert exact_by_sets() == pytest.approx(exact_by_orders(), rel=1e-12)


@pytest.mark.parametrize("samples", [1, 7, 48])
def test_the_mean_of_the_estimator_is_the_bound(samples):
    runs = torch.tensor([bound(score, ANSWER, samples, seed=s).nll for s in range(400)])
    error = float(runs.std()) / 20
    assert abs(float(runs.mean()) - exact_by_orders()) < 4 * error


def test_the_reported_error_covers_the_spread_of_runs():
    made = [bound(score, ANSWER, 64, seed=s) for s in range(100)]
    spread = float(torch.tensor([m.nll for m in made]).std())
    stated = sum(m.error for m in made) / len(made)
    assert spread < 1.15 * stated
    assert stated < 4 * spread
    assert {m.samples for m in made} == {64}


def test_the_bound_lies_above_the_true_value():
    """A model whose conditionals do not depend on the order has the bound as its exact value."""
    fixed = torch.randn(N, V, generator=torch.Generator().manual_seed(1)).double()
    truth = -float(fixed.log_softmax(1)[torch.arange(N), ANSWER].sum())
    made = bound(lambda masks: fixed.expand(len(masks), N, V)[masks], ANSWER, 300)
    assert made.nll == pytest.approx(truth, abs=4 * made.error)


def test_one_cell_is_exact():
    one = torch.tensor([[0.5, 1.0, -1.0]]).double()
    made = bound(lambda masks: one.expand(len(masks), 3), torch.tensor([1]), 5)
    assert made.nll == pytest.approx(-float(one.log_softmax(1)[0, 1]), rel=1e-12)
    assert made.error == pytest.approx(0, abs=1e-12)


def test_an_empty_answer_is_certain():
    made = bound(lambda masks: torch.zeros(0, V), torch.tensor([], dtype=torch.long), 8)
    assert made.nll == 0


@pytest.mark.parametrize("cells", [1, 3, 8])
def test_counts_are_stratified(cells):
    for seed in range(20):
        counts = mask_counts(cells, 6 * cells, seed)
        assert torch.bincount(counts, minlength=cells + 1).tolist() == [0] + [6] * cells
        few = mask_counts(cells, 5, seed)
        assert int(few.min()) >= 1 and int(few.max()) <= cells


def test_masks_have_their_counts_and_are_uniform():
    counts = torch.full((6000,), 2)
    masks = random_masks(4, counts, seed=3)
    assert torch.equal(masks.sum(1), counts)
    seen = torch.bincount((masks.long() * 2 ** torch.arange(4)).sum(1), minlength=16)
    pairs = seen[seen > 0].double()
    assert len(pairs) == 6
    assert float(((pairs - 1000) ** 2 / 1000).sum()) < 5 + 4 * 10**0.5


def test_candidates_share_their_noise():
    seen = []

    def remember(masks):
        seen.append(masks.clone())
        return score(masks)

    for answer in (ANSWER, torch.tensor([1, 1, 1])):
        bound(remember, answer, 16, seed=4)
    bound(remember, ANSWER, 16, seed=5)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_the_same_call_gives_the_same_number():
    assert bound(score, ANSWER, 32, seed=9) == bound(score, ANSWER, 32, seed=9)
