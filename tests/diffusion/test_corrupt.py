"""Corruption: only writable cells, pairs that partition the answer, nothing else touched."""

import dataclasses

import torch

from mmdiff.diffusion.corrupt import corrupt, masked_cells
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
    noisy, targets = corrupt(clean, u, p, MASK)
    assert noisy.ids.tolist() == [[7, MASK, 9, 10, MASK, MASK, 12], [0, 0, 8, 13, MASK, 0, 0]]
    assert noisy.masked.tolist() == [
        [False, False, False, False, True, False, False],
        [False, False, False, False, True, False, False],
    ]
    assert torch.equal(targets, copies["ids"])
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
    masked = corrupt(clean, u, p, MASK)[0].masked[0].tolist()
    twins = {}
    for i in range(len(row.ids)):
        if row.writable[i]:
            twins.setdefault((row.segment[i], row.position[i]), []).append(masked[i])
        else:
            assert not masked[i]
    assert len(twins) == 5
    assert all(sorted(pair) == [False, True] for pair in twins.values())
