"""Weights, denominators and the loss against float64 loops, and unbiasedness by enumeration."""

import math
from itertools import combinations, permutations
from types import SimpleNamespace

import pytest
import torch

from mmdiff.diffusion.losses import (
    DENOMINATORS,
    cart_weight,
    cell_weight,
    certainty,
    cross_entropy,
    denominator,
    masked_loss,
    shift_right,
)
from mmdiff.diffusion.schedule import mask_probability, mask_slope, uniform
from mmdiff.errors import SettingError
from mmdiff.processing import collate, packed_row
from mmdiff.training.batches import Batch
from mmdiff.training.objective import batch_loss
from mmdiff.training.recipe import Objective


def noise(*shape, seed=0):
    return uniform(torch.tensor(seed), torch.arange(math.prod(shape))).view(shape)


@pytest.mark.parametrize("weight", ["one", "inverse_p", "elbo"])
def test_weight_cell_by_cell(weight):
    p, slope = noise(3, 8), noise(3, 8, seed=1)
    copy = (noise(3, 8, seed=2) * 3).long()
    got = cell_weight(p, copy, weight, slope)
    for row in range(3):
        for cell in range(8):
            chance = float(p[row, cell])
            if int(copy[row, cell]) == 2:
                chance = 1 - chance
            top = {"one": chance, "inverse_p": 1.0, "elbo": float(slope[row, cell])}[weight]
            assert float(got[row, cell]) == pytest.approx(top / chance, rel=1e-12)


def test_unknown_weight_and_denominator_and_a_missing_slope():
    p, copy, cells = noise(1, 2), torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(SettingError, match="one, inverse_p, elbo, cart"):
        cell_weight(p, copy, "inverse")
    with pytest.raises(SettingError):
        cell_weight(p, copy, "elbo")
    with pytest.raises(SettingError, match="answer, masked, row, root, group, examples, batch"):
        denominator(cells, cells, copy, "token")


def brute_denominators(writable, masked, copy, kind, segment, group):
    """One number per cell, restated: a pair counts once, wherever its halves stand."""
    rows, cells = len(writable), len(writable[0])
    pairs = zip(writable, copy, strict=True)
    answer = [[w and c != 2 for w, c in zip(*rc, strict=True)] for rc in pairs]
    if kind == "answer":
        return [[max(1, sum(map(sum, answer)))] * cells] * rows
    if kind == "masked":
        return [[max(1, sum(map(sum, masked)))] * cells] * rows
    if kind == "batch":
        return [[rows * cells] * cells] * rows
    # A row of second halves alone is as long as its answer, and no example of its own.
    twin = [not sum(a) and any(w) for a, w in zip(answer, writable, strict=True)]
    sizes, whole = [], 0
    for row in range(rows):
        counted = writable[row] if twin[row] else answer[row]
        size = dict.fromkeys(segment[row], 0)
        for s, c in zip(segment[row], counted, strict=True):
            size[s] += c
        sizes.append(size)
        if twin[row]:
            continue
        whole += (
            sum(math.sqrt(n) for n in size.values())
            if kind == "root"
            else max(1, sum(n > 0 for n in size.values()))
        )
    if kind == "examples":
        return [[max(1, whole)] * cells] * rows
    if kind == "group":
        names = [list(zip(*row, strict=True)) for row in zip(segment, copy, group, strict=True)]
        return [
            [
                max(1, sum(masked[row][j] for j in range(cells) if names[row][j] == name))
                * max(1, whole)
                for name in names[row]
            ]
            for row in range(rows)
        ]
    power = 0.5 if kind == "root" else 1.0
    return [
        [max(1, sizes[row][s] ** power) * max(1, whole) for s in segment[row]]
        for row in range(rows)
    ]


CANVASES = {
    "plain": [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    "packed pairs": [[0, 1, 1, 2, 2], [0, 1, 2, 0, 0], [0, 0, 1, 2, 0]],
    "pairs in rows": [[1, 1, 1, 1, 1], [2, 2, 2, 2, 2], [1, 1, 1, 1, 1]],
    "one half alone": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
}


@pytest.mark.parametrize("segment", [[[0] * 5] * 3, [[0, 1, 1, 2, 2], [0, 1, 1, 3, 3], [0] * 5]])
@pytest.mark.parametrize("kind", DENOMINATORS)
@pytest.mark.parametrize("copies", CANVASES, ids=str)
def test_denominator_equals_the_loop(kind, copies, segment):
    copy = torch.tensor(CANVASES[copies])
    writable = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
    masked = writable & (noise(3, 5) < 0.5)
    group = (noise(3, 5, seed=4) * 3).long()
    got = denominator(writable, masked, copy, kind, torch.tensor(segment), group)
    lists = writable.tolist(), masked.tolist(), copy.tolist()
    expected = torch.tensor(brute_denominators(*lists, kind, segment, group.tolist()))
    torch.testing.assert_close(got.expand(3, 5).double(), expected.double())
    if not any(map(any, segment)):
        alone = denominator(writable, masked, copy, kind, group=group)
        assert torch.equal(got.expand(3, 5), alone.expand(3, 5))


@pytest.mark.parametrize("kind", DENOMINATORS)
def test_no_denominator_is_zero(kind):
    empty, zeros = torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3).long()
    assert int(denominator(empty, empty, zeros, kind, group=zeros).min()) >= 1


def test_loss_equals_the_loop():
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([3, 0, 10, 5, 5, 1, 9])
    weight, divide = noise(7).float() * 5, torch.arange(1, 8)
    expected = 0.0
    for k in range(7):
        row = [float(x) for x in logits[k]]
        log_total = math.log(math.fsum(math.exp(x) for x in row))
        expected += float(weight[k]) * (log_total - row[int(targets[k])]) / float(divide[k])
    assert float(masked_loss(logits, targets, weight, divide)) == pytest.approx(expected, rel=1e-6)


def test_no_masked_cell_gives_a_zero_with_gradients():
    logits = torch.zeros(0, 5, requires_grad=True)
    empty = torch.zeros(0)
    loss = masked_loss(logits, empty.long(), empty, empty)
    loss.backward()
    assert loss.item() == 0


def test_narrow_logits_are_summed_in_float32():
    logits = torch.randn(64, 100, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets, ones = torch.arange(64), torch.ones(64)
    loss = masked_loss(logits, targets, ones, ones)
    exact = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
    assert float(loss) == pytest.approx(float(exact), rel=1e-6)


def test_a_token_left_out_takes_no_probability():
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).double()
    targets = torch.tensor([0, 1, 2, 4, 5, 8])
    got = cross_entropy(logits, targets, without=3)
    for k in range(6):
        row = [float(x) for i, x in enumerate(logits[k]) if i != 3]
        log_total = math.log(math.fsum(math.exp(x) for x in row))
        assert float(got[k]) == pytest.approx(log_total - float(logits[k, targets[k]]), rel=1e-12)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.8])
def test_cart_weight_cell_by_cell(p):
    masked, see = noise(3, 9) < 0.5, noise(3, 9, 9, seed=1) < 0.8
    position = torch.tensor([0, 1, 2, 3, 4, 3, 4, 5, 6]).expand(3, 9)  # two halves of a pair
    got = cart_weight(masked, position, see, p)
    for row in range(3):
        for n in range(9):
            total = 0.0
            for i in range(9):
                far = abs(int(position[row, n]) - int(position[row, i]))
                if see[row, n, i] and not masked[row, i] and far:
                    total += p * (1 - p) ** (far - 1) / 2
            expected = total if masked[row, n] else 0.0
            assert float(got[row, n]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_certainty_is_the_entropy_of_cells_that_are_right(temperature):
    logits = 3 * torch.randn(12, 7, generator=torch.Generator().manual_seed(0)).double()
    example = torch.tensor([0, 0, 0, 0, 0, 2, 2, 2, 2, 30, 30, 30])  # most numbers are nobody's
    targets = logits.argmax(1)
    targets[[1, 4, 5, 9, 10, 11]] += 1  # wrong, all of example 30
    targets %= 7
    expected = 0.0
    for number in (0, 2, 30):
        entropies = []
        for k in range(12):
            row = [float(x) / temperature for x in logits[k]]
            if int(example[k]) != number or row.index(max(row)) != int(targets[k]):
                continue
            total = math.fsum(math.exp(x) for x in row)
            shares = [math.exp(x) / total for x in row]
            entropies.append(-math.fsum(p * math.log(p) for p in shares))
        expected += math.fsum(entropies) / len(entropies) if entropies else 0.0
    logits.requires_grad_()
    got = certainty(logits, targets, example, temperature)
    assert float(got.detach()) == pytest.approx(expected, rel=1e-12)
    got.backward()
    assert not bool(logits.grad[[1, 4, 5, 9, 10, 11]].any())


def test_certainty_without_cells_or_doubt_is_zero_with_gradients():
    none = torch.zeros(0, 5, requires_grad=True)
    certainty(none, torch.zeros(0).long(), torch.zeros(0).long()).backward()
    sure = torch.tensor([[500.0, 0.0, -500.0]], requires_grad=True)
    value = certainty(sure, torch.tensor([0]), torch.tensor([0]))
    value.backward()
    assert float(value.detach()) == 0
    assert bool(torch.isfinite(sure.grad).all())


def test_shift_right():
    logits = noise(2, 4, 3)
    shifted = shift_right(logits)
    assert torch.equal(shifted[:, 0], logits[:, 0])
    for i in range(1, 4):
        assert torch.equal(shifted[:, i], logits[:, i - 1])


# Unbiasedness: a "model" is any table of cross-entropies c_i(M) of cell i given the masked set M.

N = 3
SETS = [frozenset(s) for k in range(N + 1) for s in combinations(range(N), k)]
TABLE = {(i, s): 0.2 + 3 * float(noise(1, seed=17 * i + 101 * SETS.index(s)))
         for s in SETS for i in s}  # fmt: skip


def any_order_bound():
    """The mean over all orders of generation of the sum of each cell's cross-entropy."""
    total = 0.0
    for order in permutations(range(N)):
        total += sum(TABLE[cell, frozenset(order[k:])] for k, cell in enumerate(order))
    return total / math.factorial(N)


def expectation(p, weight):
    """E over Bernoulli(p) masks of sum over masked cells of weight * cross-entropy; p (n,)."""
    value = torch.zeros_like(p)
    for s in SETS:
        chance = p ** len(s) * (1 - p) ** (N - len(s))
        value += chance * weight * sum(TABLE[i, s] for i in s)
    return value


@pytest.mark.parametrize("copy", [0, 1, 2])
@pytest.mark.parametrize(
    ("schedule", "weight"), [("linear", "inverse_p"), ("linear", "elbo"), ("cosine", "elbo")]
)
def test_both_halves_of_a_pair_estimate_the_bound(copy, schedule, weight):
    edges = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    t = (edges[1:] + edges[:-1]) / 2
    p = mask_probability(t, schedule, eps=0.0)
    slope = mask_slope(t, schedule, eps=0.0)
    w = cell_weight(p[None], torch.full((1, len(t)), copy), weight, slope[None])[0]
    masked_with = 1 - p if copy == 2 else p
    estimate = float(expectation(masked_with, w).mean())
    assert estimate == pytest.approx(any_order_bound(), rel=1e-5)


class TableModel:
    """Scores answer cells of a packed row by TABLE: exp(-c) to the target, the rest elsewhere."""

    device = torch.device("cpu")
    config = SimpleNamespace(mask_token_id=0)
    target = 1

    def score(self, canvas, need):
        logits = []
        for row, cell in need.nonzero().tolist():
            alike = canvas.writable[row] & (canvas.copy[row] == canvas.copy[row, cell])
            places = alike.nonzero()[:, 0].tolist()
            masked = frozenset(places.index(j) for j in places if canvas.masked[row, j])
            right = math.exp(-TABLE[places.index(cell), masked])
            logits.append([math.log(1 - right), math.log(right)])
        return torch.tensor(logits).view(-1, 2)


@pytest.mark.parametrize("weight", ["inverse_p", "elbo"])
@pytest.mark.parametrize("copies", [1, 2])
def test_batch_loss_estimates_the_bound_per_token(weight, copies):
    runs = 2000
    row = packed_row([5], [([6], [TableModel.target] * N)], copies)
    canvas = collate([row], pad_id=0)
    objective = Objective(complementary=copies == 2, weight=weight, denominator="answer", eps=1e-3)
    position, values = canvas.position, []
    for run in range(runs):
        time = torch.full(position.shape, (run + 0.5) / runs)
        u = uniform(torch.tensor(run), position).float()
        values.append(float(batch_loss(TableModel(), Batch(canvas, time, u), objective)))
    values = torch.tensor(values, dtype=torch.float64)
    error = float(values.std()) / runs**0.5
    assert float(values.mean()) == pytest.approx(any_order_bound() / N, abs=4 * error + 2e-3)


def test_weight_one_with_a_pair_is_the_mean_over_the_answer():
    canvas = collate([packed_row([5], [([6], [TableModel.target] * N)], 2)], pad_id=0)
    time, u = torch.full(canvas.ids.shape, 0.5), uniform(canvas.position).float()
    loss = batch_loss(TableModel(), Batch(canvas, time, u), Objective())
    first = frozenset(i for i in range(N) if float(u[0, 2 + i]) < 0.5005)
    second = frozenset(range(N)) - first
    expected = sum(TABLE[i, first if i in first else second] for i in range(N)) / N
    assert float(loss) == pytest.approx(expected, rel=1e-5)
