"""Corruption: only writable cells, pairs that partition the answer, nothing else touched."""

import dataclasses
import math
from collections import Counter

import pytest
import torch

from mmdiff.diffusion.corrupt import (
    answers,
    corrupt,
    exact_share,
    frontier,
    masked_cells,
    with_at_least_one,
)
from mmdiff.diffusion.schedule import uniform
from mmdiff.processing import collate, packed_row, prompt_row

MASK = 3


def noise(rows, cells, seed=0):
    return uniform(torch.tensor(seed), torch.arange(rows)[:, None], torch.arange(cells)[None, :])


def test_masked_cells_cell_by_cell():
    u, p = noise(6, 20), noise(6, 20, seed=1)
    writable = noise(6, 20, seed=2) < 0.7
    copy = (noise(6, 20, seed=3) * 3).long()
    masked = masked_cells(u, p, writable, copy)
    for row in range(6):
        for cell in range(20):
            below = float(u[row, cell]) < float(p[row, cell])
            expected = not below if int(copy[row, cell]) == 2 else below
            assert bool(masked[row, cell]) == (expected and bool(writable[row, cell]))


def test_pairs_partition_the_answer():
    u, p = noise(4, 50), noise(4, 1, seed=1).expand(4, 50)
    writable = noise(4, 50, seed=2) < 0.5
    first = masked_cells(u, p, writable, torch.ones(4, 50, dtype=torch.long))
    second = masked_cells(u, p, writable, torch.full((4, 50), 2))
    assert not bool((first & second).any())
    assert torch.equal(first | second, writable)


def test_the_share_of_masked_cells_is_p():
    u = noise(200, 500)
    for p in (0.1, 0.5, 0.93):
        for copy, share in ((0, p), (1, p), (2, 1 - p)):
            cells = torch.full((200, 500), copy)
            masked = masked_cells(u, torch.full((200, 500), p), torch.ones_like(u).bool(), cells)
            assert abs(float(masked.double().mean()) - share) < 4 * (0.25 / 100_000) ** 0.5


def test_certain_and_impossible_masking():
    u, writable = noise(1, 9), torch.ones(1, 9, dtype=torch.bool)
    clean = torch.zeros(1, 9, dtype=torch.long)
    assert bool(masked_cells(u, torch.ones(1, 9), writable, clean).all())
    assert not bool(masked_cells(u, torch.zeros(1, 9), writable, clean).any())


def test_corrupt_changes_masked_ids_and_nothing_else():
    # A mask id in the prompt is plain text: it is given, not masked.
    rows = [
        prompt_row([7, MASK, 9], [10, 11, MASK, 12], [True, True, True, False]),
        prompt_row([8], [13, 14], [True, True]),
    ]
    clean = collate(rows, pad_id=0)
    before = {f.name: getattr(clean, f.name) for f in dataclasses.fields(clean)}
    copies = {name: v.clone() for name, v in before.items() if isinstance(v, torch.Tensor)}
    u, p = torch.tensor([[0.1, 0.9] * 4])[:, :7].expand(2, 7), torch.full((2, 7), 0.5)
    noisy = corrupt(clean, masked_cells(u, p, clean.writable, clean.copy), MASK)
    assert noisy.ids.tolist() == [[7, MASK, 9, 10, MASK, MASK, 12], [0, 0, 8, 13, MASK, 0, 0]]
    assert noisy.masked.tolist() == [
        [False, False, False, False, True, False, False],
        [False, False, False, False, True, False, False],
    ]
    for name, value in copies.items():
        assert torch.equal(getattr(clean, name), value)
        if name not in ("ids", "masked"):
            assert torch.equal(getattr(noisy, name), value)


def test_a_packed_pair_with_shared_noise_partitions_each_answer():
    row = packed_row([5, 5], [([6, 7], [10, 11, 12]), ([8], [13, 14])], copies=2)
    clean = collate([row], pad_id=0)
    # Twins stand at the same positions of the same segment, so keys of those agree.
    u = uniform(clean.segment, clean.position)
    p = torch.full_like(u, 0.5)
    masked = masked_cells(u, p, clean.writable, clean.copy)[0].tolist()
    twins = {}
    for i in range(len(row.ids)):
        if row.writable[i]:
            twins.setdefault((row.segment[i], row.position[i]), []).append(masked[i])
        else:
            assert not masked[i]
    assert len(twins) == 5
    assert all(sorted(pair) == [False, True] for pair in twins.values())


# Rules by group


def by_group(group, among):
    """Cells of every (row, group), left to right."""
    found = {}
    for row in range(len(group)):
        for cell in range(group.shape[1]):
            if among[row, cell]:
                found.setdefault((row, int(group[row, cell])), []).append((row, cell))
    return found.values()


def drawn(seed, rows=5, cells=24, groups=4):
    group = (noise(rows, cells, seed) * groups).long()
    among = noise(rows, cells, seed + 1) < 0.8
    return noise(rows, cells, seed + 2), group, among


def test_at_least_one_cell_of_every_group():
    for seed, share in ((0, 0.01), (10, 0.2), (20, 0.0)):
        u, group, among = drawn(seed)
        got = with_at_least_one(u, torch.full_like(u, share), among, group)
        expected = u < share
        for places in by_group(group, among):
            expected[min(places, key=lambda place: float(u[place]))] = True
        assert torch.equal(got, expected)


@pytest.mark.parametrize("half_life", [None, 0.25, 2.0])
def test_exactly_k_cells_of_every_group(half_life):
    for seed in range(0, 60, 10):
        u, group, among = drawn(seed)
        shares = noise(5, 4, seed + 3)
        p = shares.gather(1, group)
        least = seed % 20 // 10
        got = exact_share(u, p, among, group, half_life, least)
        expected = torch.zeros_like(got)
        for places in by_group(group, among):
            n, share = len(places), float(p[places[0]])
            k = min(n, max(least, round(share * n)))

            def key(i, u=u, places=places, n=n, share=share):
                tilt = 0.0 if half_life is None else math.log(2) / (half_life * n) * (1 - share)
                return tilt * i - math.log(-math.log(float(u[places[i]])))

            for i in sorted(range(n), key=key, reverse=True)[:k]:
                expected[places[i]] = True
        assert torch.equal(got, expected)


def test_an_exact_share_without_half_life_takes_every_set_alike():
    runs = 4000
    u, ones = noise(runs, 4), torch.ones(runs, 4, dtype=torch.bool)
    got = exact_share(u, torch.full((runs, 4), 0.5), ones, torch.zeros(runs, 4).long())
    seen = Counter(map(tuple, got.tolist()))
    assert len(seen) == 6
    assert sum((n - runs / 6) ** 2 / (runs / 6) for n in seen.values()) < 5 + 4 * 10**0.5


def test_a_short_half_life_masks_late_cells_and_a_full_share_all():
    u, ones = noise(300, 16), torch.ones(300, 16, dtype=torch.bool)
    zeros = torch.zeros(300, 16).long()
    few = exact_share(u, torch.full((300, 16), 0.25), ones, zeros, half_life=0.05)
    assert float(few[:, 8:].sum() / few.sum()) > 0.95
    assert bool(exact_share(u, torch.ones(300, 16), ones, zeros, half_life=0.05).all())
    assert not bool(exact_share(u, torch.zeros(300, 16), ones, zeros).any())


def test_extreme_draws_stay_in_order():
    u = torch.tensor([[0.0, 1.0, 0.5, 1 - 2**-53]]).double()
    ones = torch.ones(1, 4, dtype=torch.bool)
    got = exact_share(u, torch.full((1, 4), 0.5), ones, torch.zeros(1, 4).long(), 0.5)
    assert got.tolist() == [[False, True, False, True]]


def test_every_copy_of_every_answer_is_a_group_and_every_block_one():
    row = packed_row([5, 5], [([6, 7], [10, 11, 12]), ([8], [13, 14])], copies=2)
    canvas = collate([row], pad_id=0)
    canvas.block = torch.where(canvas.writable, 1 + canvas.position % 2, 0)
    for by_block in (False, True):
        names = answers(canvas, by_block)[0].tolist()
        keys = zip(canvas.segment[0].tolist(), canvas.copy[0].tolist(),
                   canvas.block[0].tolist() if by_block else names, strict=True)  # fmt: skip
        pairs = set(zip(names, list(keys), strict=True))
        assert len(pairs) == len(set(names)) == len({key for _, key in pairs})


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_the_frontier_is_one_block_and_what_lies_behind_it(size, empty):
    answers_of = {1: 4, 2: 6, 3: 1}  # segment: cells
    pairs = [([31] * segment, [40] * cells) for segment, cells in answers_of.items()]
    canvas = collate([packed_row([7, 8], pairs, 2), packed_row([7], pairs[:1], 2)], 1)
    seen = Counter()
    for step in range(24):
        draw = torch.full(canvas.shape, step / 24)
        inside, behind = frontier(canvas, draw, size, empty)
        for row, segments in ((0, (1, 2, 3)), (1, (1,))):
            for segment in segments:
                cells = answers_of[segment]
                blocks = cells // size + 1 if empty else math.ceil(cells / size)
                chosen = int(step / 24 * blocks)
                seen[segment, chosen] += row == 0
                for copy in (1, 2):
                    own = (canvas.segment[row] == segment) & (canvas.copy[row] == copy)
                    places = own.nonzero()[:, 0].tolist()
                    assert len(places) == cells
                    for offset, place in enumerate(places):
                        assert bool(inside[row, place]) == (offset // size == chosen)
                        assert bool(behind[row, place]) == (offset // size > chosen)
        assert not bool(((inside | behind) & ~canvas.writable).any())
    for segment, cells in answers_of.items():
        blocks = cells // size + 1 if empty else math.ceil(cells / size)
        counts = [seen[segment, block] for block in range(blocks)]
        assert sum(counts) == 24 and max(counts) - min(counts) <= 1
