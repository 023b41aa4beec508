"""Orders and accept rules against loops; ties go to the lowest cell."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmdiff.decoding.choose import ACCEPTS, ORDERS, within_bound
from mmdiff.decoding.draws import DRAWS as DRAWS_OF
from mmdiff.decoding.draws import Draws, top
from mmdiff.decoding.loop import set_blocks
from mmdiff.decoding.propose import propose
from mmdiff.decoding.settings import Decoding
from mmdiff.diffusion.schedule import rate_counts, ratio_share, reveal_counts, timestep_counts
from mmdiff.errors import SettingError
from mmdiff.processing import collate, prompt_row

INF = float("inf")
DRAWS = Draws(*(torch.zeros(1).long(),) * 3)


def made(rows=30, vocabulary=7, seed=0):
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3
    logits[:, 2] = -INF
    key = (torch.arange(rows) // 10, torch.arange(rows) % 3, torch.arange(rows) % 10)
    draws = Draws(*key)
    return propose(logits, draws, Decoding()), draws


def softmax(row):
    total = math.fsum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def brute(order, row, token):
    p = softmax(row)
    if order == "confidence":
        return math.log(p[token] / (1 - p[token]))
    if order == "margin":
        best = sorted(p, reverse=True)
        return best[0] - best[1]
    return math.fsum(x * math.log(x) for x in p if x > 0)


@pytest.mark.parametrize("order", ["confidence", "margin", "entropy"])
def test_order_equals_the_loop(order):
    proposal, key = made()
    got = ORDERS.get(order)(proposal, key)
    rows = proposal.logits.double().tolist()
    for k, (row, token) in enumerate(zip(rows, proposal.tokens.tolist(), strict=True)):
        assert float(got[k]) == pytest.approx(brute(order, row, token), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("order", ["confidence", "margin", "entropy"])
def test_a_surer_cell_comes_first(order):
    logits = torch.tensor([[0.0, 1.0, 0.0], [0.0, 4.0, 0.0], [0.0, 2.0, 0.0], [0.0, 9.0, -INF]])
    key = (torch.zeros(4).long(), torch.zeros(4).long(), torch.arange(4))
    draws = Draws(*key)
    score = ORDERS.get(order)(propose(logits, draws, Decoding()), draws)
    assert score.argsort(descending=True).tolist() == [3, 1, 2, 0]
    assert bool(score.isfinite().all())


def test_random_order_knows_only_the_key():
    (one, key), (other, _) = made(seed=0), made(seed=1)
    rule = ORDERS.get("random")
    assert torch.equal(rule(one, key), rule(other, key))
    assert rule(one, key).unique().numel() == 30
    for i in range(3):
        numbers = (key.seed, key.step, key.cell)
        changed = Draws(*(k + 50 if i == j else k for j, k in enumerate(numbers)))
        assert not torch.equal(rule(one, changed), rule(one, key))


def test_random_order_is_not_the_number_that_picks_the_token():
    logits = torch.zeros(400, 2)
    key = (torch.zeros(400).long(), torch.zeros(400).long(), torch.arange(400))
    proposal = propose(logits, Draws(*key), Decoding(temperature=1.0))
    score = ORDERS.get("random")(proposal, Draws(*key))
    ones = score[proposal.tokens == 1]
    assert abs(float(ones.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / len(ones))


def test_left_to_right():
    proposal, key = made()
    score = ORDERS.get("left_to_right")(proposal, key)
    assert score.argsort(descending=True, stable=True)[:3].tolist() == [0, 10, 20]
    assert torch.equal(score, -key.cell.float())


@given(st.data())
def test_top_equals_a_stable_sort(data):
    values = st.sampled_from([-INF, -2.0, 0.0, 0.5, 1.0, INF])
    rows = [data.draw(st.lists(values, min_size=6, max_size=6)) for _ in range(3)]
    counts = data.draw(st.lists(st.integers(0, 8), min_size=3, max_size=3))
    got = top(torch.tensor(rows), torch.tensor(counts)).tolist()
    for row, count, chosen in zip(rows, counts, got, strict=True):
        best = sorted(range(6), key=lambda i: (-row[i], i))[:count]
        assert chosen == [i in best and row[i] > -INF for i in range(6)]


def test_ties_go_to_the_lowest_cell():
    score = torch.tensor([[0.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    assert top(score, torch.tensor([2, 1])).nonzero().tolist() == [[0, 1], [0, 2], [1, 0]]


# Accept rules


def canvas(*holes, block_length=None):
    """Rows with prompts of different lengths; `holes` are strings, x a hole and . a given cell."""
    rows = [
        prompt_row([1] * (2 + i), [5] * len(h), [c == "x" for c in h]) for i, h in enumerate(holes)
    ]
    canvas = collate(rows, pad_id=0)
    set_blocks(canvas, block_length)
    return canvas


def play(settings, canvas):
    """How many cells each row accepts at each step under the schedule rule."""
    rule = ACCEPTS.get("schedule")(settings, canvas)
    taken = [[] for _ in range(canvas.shape[0])]
    while bool(canvas.masked.any()):
        rows = canvas.masked.any(1).nonzero()[:, 0]
        live = canvas.select(rows)
        late = live.block.max() + 1
        current = torch.where(live.masked, live.block, late).amin(1, keepdim=True)
        score = torch.where(live.masked & (live.block == current), 0.0, -INF)
        accept = rule(score, score.exp(), live, rows, DRAWS)
        for row, number in zip(rows.tolist(), accept.sum(1).tolist(), strict=True):
            taken[row].append(number)
        canvas.masked[rows] &= ~accept
    return taken


@pytest.mark.parametrize("schedule", ["linear", "shift", "cosine", "logit_normal"])
@pytest.mark.parametrize("steps", [1, 3, 8, 20])
def test_schedule_of_one_block(schedule, steps):
    settings = Decoding(max_new_tokens=12, steps=steps, schedule=schedule, shift=0.4)
    got = play(settings, canvas("x" * 12, "x..xx......x"))
    assert got == [
        reveal_counts(12, steps, schedule, 0.4),
        reveal_counts(4, steps, schedule, 0.4),
    ]


def test_without_steps_one_cell_at_a_time():
    assert play(Decoding(max_new_tokens=5), canvas("xxxxx", "x.x..")) == [[1] * 5, [1] * 2]


def test_steps_are_split_over_blocks_remainder_first():
    settings = Decoding(max_new_tokens=10, steps=5, block_length=4)
    # Blocks of 4, 4 and 2 cells get 2, 2 and 1 steps.
    got = play(settings, canvas("x" * 10, "....x.xxxx", block_length=4))
    assert got == [[2, 2, 2, 2, 2], [2, 1, 2]]


def test_a_given_block_costs_no_step():
    settings = Decoding(max_new_tokens=6, steps=6, block_length=2)
    assert play(settings, canvas("..xx..", "xxxxxx", block_length=2)) == [[1, 1], [1] * 6]


def test_rows_that_leave_do_not_shift_the_others():
    settings = Decoding(max_new_tokens=8, steps=4, schedule="shift", shift=0.3)
    holes = ("x.......", "xxxxxxxx", "xx.xx.xx")
    together = play(settings, canvas(*holes))
    assert together == [play(settings, canvas(h))[0] for h in holes]


def test_unknown_schedule_is_refused_before_the_first_step():
    with pytest.raises(SettingError, match="Did you mean cosine"):
        ACCEPTS.get("schedule")(Decoding(schedule="cosin"), canvas("xx"))


def test_threshold_accepts_all_sure_cells_and_always_the_best():
    rule = ACCEPTS.get("threshold")(Decoding(threshold=0.5), canvas("xxxx"))
    score = torch.tensor([[1.0, -INF, 3.0, 2.0], [-5.0, -4.0, -6.0, -INF], [0.0, 0.0, 0.0, 0.0]])
    chance = torch.tensor([[0.5, 0.9, 0.8, 0.4999], [0.1, 0.2, 0.1, 0.99], [0.1, 0.1, 0.1, 0.1]])
    got = rule(score, chance, canvas("xxxx"), torch.arange(3), DRAWS)
    assert got.nonzero().tolist() == [[0, 0], [0, 2], [1, 1], [2, 0]]


def test_threshold_zero_accepts_every_open_cell():
    rule = ACCEPTS.get("threshold")(Decoding(threshold=0.0), canvas("xx"))
    score = torch.tensor([[0.3, -INF]])
    got = rule(score, torch.tensor([[0.0, 0.0]]), canvas("xx"), torch.arange(1), DRAWS)
    assert got.tolist() == [[True, False]]


def test_tempered_order_draws_without_replacement_by_softmax():
    score = torch.tensor([[0.0, 1.0, -INF, 2.0]]).expand(6000, 4)
    rows, cells = (score > -INF).nonzero(as_tuple=True)
    draws = Draws(rows, torch.zeros_like(rows), cells)
    counts = torch.full((6000,), 1)
    chance = draws.choose(score, counts, 0.5).double().mean(0)
    expected = (score[0] / 0.5).softmax(0).double()
    assert float((chance - expected).abs().max()) < 4 * math.sqrt(0.25 / 6000)
    both = draws.choose(score, counts + 1, 0.5)
    assert both.sum(1).unique().tolist() == [2]
    assert not bool(both[:, 2].any())
    assert torch.equal(draws.choose(score, counts, 0.0), top(score, counts))


def test_origin_reveals_by_time_and_all_in_the_last_step():
    settings = Decoding(max_new_tokens=1, steps=4, accept="origin", eps=0.2)
    rule = ACCEPTS.get("origin")(settings, canvas("x"))
    score = torch.zeros(5000, 1)
    for step in range(4):
        zeros = torch.zeros(5000).long()
        draws = Draws(torch.arange(5000), zeros + step, zeros)
        got = rule(score, score, canvas("x"), torch.arange(5000), draws).double().mean()
        t, s = 1 - 0.2 * step, 0.8 - 0.2 * step
        expected = 1 - s / t if step < 3 else 1.0
        assert float(got) == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 5000))


@pytest.mark.parametrize("masks", [0, 1, 7, 24])
@pytest.mark.parametrize("steps", [1, 5, 24, 40])
@pytest.mark.parametrize("at_least", [True, False])
def test_timestep_counts_use_up_the_cells(masks, steps, at_least):
    counts = timestep_counts(masks, steps, 1e-3, at_least)
    assert sum(counts) == masks
    assert min(counts, default=1) >= int(at_least)
    assert len(counts) <= steps


def test_timestep_counts_are_published_ones():
    # linspace(1, 0.2, 5) = 1, .8, .6, .4, .2: int(11 * .2), int(9 * .25), int(7 / 3), the rest
    assert timestep_counts(11, 4, 0.2, False) == [2, 2, 2, 5]
    assert timestep_counts(2, 4, 0.2, False) == [0, 0, 0, 2]
    assert timestep_counts(2, 4, 0.2) == [1, 1]


# Rules of block diffusion


@given(st.data())
def test_rate_takes_the_counts_of_a_full_block_while_masks_last(data):
    cells = data.draw(st.integers(1, 9))
    masks, steps = data.draw(st.integers(0, cells)), data.draw(st.integers(1, 12))
    full = [cells // steps + (i < cells % steps) for i in range(steps)]
    left, expected = masks, []
    for count in full:
        if left > 0:
            expected.append(count)
            left -= count
    assert rate_counts(masks, cells, steps) == expected


def test_rate_gives_a_partly_given_block_fewer_steps():
    settings = Decoding(max_new_tokens=8, steps=4, block_length=4, schedule="rate")
    assert play(settings, canvas("..xx.xxx", block_length=4)) == [[2, 2, 1]]
    even = Decoding(max_new_tokens=8, steps=4, block_length=4)
    assert play(even, canvas("..xx.xxx", block_length=4)) == [[1, 1, 2, 1]]


@given(st.data())
def test_dynamic_equals_the_loop(data):
    """Blocks of 4 in 2 steps: 2 cells a step; per block the steps count anew."""
    threshold = 0.5
    settings = Decoding(
        max_new_tokens=8, steps=4, block_length=4, accept="dynamic", threshold=threshold
    )
    live = canvas("xxxxxxxx", "xx..xxx.", block_length=4)
    rule = ACCEPTS.get("dynamic")(settings, live)
    start = live.prompt_length
    for _ in range(6):
        if not bool(live.masked.any(1).all()):
            break
        is_open = live.masked & (live.block == live.open_block())
        chance = torch.zeros(live.shape)
        for cell in is_open.nonzero().tolist():
            chance[cell[0], cell[1]] = data.draw(st.sampled_from([0.1, 0.4, 0.5, 0.6, 0.9]))
        score = torch.where(is_open, chance, -INF)
        got = rule(score, chance, live, torch.arange(2), DRAWS)
        for row in range(2):
            mine = [c for c in range(start, start + 8) if is_open[row, c]]
            wanted = min(len(mine), counts_left(settings, live, row))
            sure = [c for c in mine if chance[row, c] > threshold]
            best = sorted(mine, key=lambda c: (-float(chance[row, c]), c))[:wanted]
            expected = sure if len(sure) >= wanted else best
            assert got[row].nonzero()[:, 0].tolist() == sorted(expected)
        live.masked &= ~got


def counts_left(settings, live, row):
    """2 cells a step of a block with 4 holes; rows of the test have 4 and 4, or 2 and 3."""
    block = int(live.open_block()[row])
    holes = int((live.writable[row] & (live.block[row] == block)).sum())
    left = int((live.masked[row] & (live.block[row] == block)).sum())
    first = reveal_counts(holes, 2)
    return first[0] if left == holes else first[1]


@given(st.data())
def test_entropy_bound_equals_the_loop(data):
    values = st.sampled_from([0.0, 0.0625, 0.125, 0.25, 0.5, 1.0, 3.0])  # sums are exact
    entropy = data.draw(st.lists(values, min_size=6, max_size=6))
    is_open = data.draw(st.lists(st.booleans(), min_size=6, max_size=6))
    bound = data.draw(st.sampled_from([0.0625, 0.25, 0.75, 2.0]))
    expected, total = set(), 0.0
    for cell in sorted((i for i in range(6) if is_open[i]), key=lambda i: (entropy[i], i)):
        if total <= bound:
            expected.add(cell)
        total += entropy[cell]
    got = within_bound(torch.tensor([entropy]), torch.tensor([is_open]), bound)
    assert set(got[0].nonzero()[:, 0].tolist()) == expected


def test_entropy_bound_reads_the_entropy_of_the_order():
    settings = Decoding(accept="entropy_bound", order="entropy", entropy_bound=0.3)
    rule = ACCEPTS.get("entropy_bound")(settings, canvas("xxxx"))
    score = torch.tensor([[-0.2, -0.05, -INF, -0.3]])
    got = rule(score, score.exp(), canvas("xxxx"), torch.arange(1), DRAWS)
    assert got.tolist() == [[True, True, False, True]]
    with pytest.raises(SettingError, match="use it with order=entropy"):
        ACCEPTS.get("entropy_bound")(Decoding(accept="entropy_bound"), canvas("x"))


# Confident decoding


def brute_share(left, total, step, steps, eps):
    time = [1 - i * (1 - eps) / steps for i in range(steps + 1)]
    now = left / total
    below = [s for i, s in enumerate(time) if s < now and i > step and i < steps]
    cells = [(int(left * (1 - s / now)), 1 - s / now) for s in below]
    return next((pair for pair in cells if pair[0] >= 1), (left, 1.0))


@pytest.mark.parametrize(("total", "steps", "eps"), [(14, 14, 1e-3), (13, 5, 0.01), (40, 7, 0.2)])
def test_ratio_share_equals_the_loop(total, steps, eps):
    for step in range(steps):
        for left in range(1, total + 1):
            cells, chance = ratio_share(left, total, step, steps, eps)
            wanted = brute_share(left, total, step, steps, eps)
            assert (cells, chance) == (wanted[0], pytest.approx(wanted[1], abs=1e-5))
    assert ratio_share(1, 10**6, 0, 512) == (1, 1.0)  # below the last time


def decide(rule, chance, holes, settings, draws=DRAWS):
    """What a rule accepts of rows with these probabilities, at one step."""
    made = canvas(*holes)
    start = made.prompt_length
    score = torch.full(made.shape, -INF)
    score[:, start:] = torch.where(made.masked[:, start:], torch.tensor(chance), -INF)
    got = rule(score, score.clamp(min=0), made, torch.arange(len(holes)), draws)
    return [row.nonzero()[:, 0].tolist() for row in got[:, start:]]


def test_confident_takes_the_sure_cells_else_the_schedule():
    settings = Decoding(max_new_tokens=4, steps=2, threshold=0.5)
    holes, chance = ("xxxx", "xxxx", "x.xx"), [[0.6, 0.2, 0.5, 0.7]] + [[0.1, 0.4, 0.2, 0.3]] * 2
    rule = ACCEPTS.get("confident")(settings, canvas(*holes))
    assert decide(rule, chance, holes, settings) == [[0, 3], [1], [3]]
    # The last step takes all, whatever the threshold says.
    assert decide(rule, chance, holes, settings) == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 2, 3]]


@pytest.mark.parametrize("name", ["confident", "confident_origin"])
def test_confident_rows_do_not_depend_on_each_other(name):
    settings = Decoding(max_new_tokens=6, steps=3, threshold=0.8, accept=name)
    holes = ("xxxxxx", "x.xx.x", "xx....")
    chance = torch.rand(3, 6, generator=torch.Generator().manual_seed(1)).tolist()
    keys = [
        (row, cell) for row, text in enumerate(holes) for cell, c in enumerate(text) if c == "x"
    ]

    def run(numbers):
        own = [(row, cell) for row, cell in keys if row in numbers]
        seed, cell = (torch.tensor(part) for part in zip(*own, strict=True))
        draws = Draws(seed, torch.zeros_like(seed), cell)
        texts = [holes[n] for n in numbers]
        rule = ACCEPTS.get(name)(settings, canvas(*texts))
        return decide(rule, [chance[n] for n in numbers], texts, settings, draws)

    assert run([0, 1, 2]) == [run([n])[0] for n in range(3)]


def test_confident_origin_draws_each_cell():
    settings = Decoding(max_new_tokens=4, steps=4, threshold=1.0)
    holes = ("xxxx",) * 300
    rule = ACCEPTS.get("confident_origin")(settings, canvas(*holes))
    seed = torch.arange(300).repeat_interleave(4)
    draws = Draws(seed, torch.zeros_like(seed), torch.arange(4).repeat(300))
    taken = sum(map(len, decide(rule, [[0.5] * 4] * 300, holes, settings, draws)))
    chance = ratio_share(4, 4, 0, 4)[1]
    assert taken / 1200 == pytest.approx(chance, abs=4 * math.sqrt(0.25 / 1200))


def test_dimple_decides_over_the_whole_batch():
    """Under compat one sure cell of a batch keeps every other row waiting."""
    settings = Decoding(max_new_tokens=3, steps=3, threshold=0.5, compat="dimple")
    holes, chance = ("xxx", "xxx"), [[0.1, 0.6, 0.2], [0.3, 0.4, 0.2]]
    joint = DRAWS_OF.get("dimple").accepts["confident"](settings, canvas(*holes))
    assert decide(joint, chance, holes, settings) == [[1], []]
    unsure = [[0.1, 0.2, 0.2], [0.3, 0.4, 0.2]]
    joint = DRAWS_OF.get("dimple").accepts["confident"](settings, canvas(*holes))
    assert decide(joint, unsure, holes, settings) == [[], [1]]  # int(6 (1 - s / t)) = 1
    alone = ACCEPTS.get("confident")(settings, canvas(*holes))
    assert decide(alone, chance, holes, settings) == [[1], [1]]
