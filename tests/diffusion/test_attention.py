"""The attention rule against a triple loop that restates it, and its consequences one by one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdiff.diffusion.attention import HIDDEN, LAYOUTS, Cells, additive, allowed
from mmdiff.errors import SettingError
from mmdiff.processing import collate, packed_row, prompt_row


def looks(q, k, layout):
    """The rule in words: q and k are (block, segment, copy, valid, column) of a query and a key."""
    q_block, q_segment, q_copy, _, q_column = q
    k_block, k_segment, k_copy, k_valid, k_column = k
    if not k_valid:
        return False
    if k_segment not in (0, q_segment):
        return False
    if k_copy not in (0, q_copy):
        return False
    if layout == "full":
        return True
    if layout == "causal":
        return k_column <= q_column
    if layout == "causal_block" and k_copy == q_copy and k_column > q_column:
        return False
    if layout == "prefix":
        q_block, k_block = min(q_block, 1), min(k_block, 1)
    if q_copy == 0:
        return k_block <= q_block
    if k_copy == q_copy:
        return k_block == q_block
    return k_block < q_block


def brute(query, key, layout):
    fields = ("block", "segment", "copy", "valid")
    rows, queries = query.block.shape
    see = torch.zeros(rows, queries, key.block.shape[1], dtype=torch.bool)
    for b in range(rows):
        for i in range(queries):
            for j in range(key.block.shape[1]):
                q = (*(int(getattr(query, f)[b, i]) for f in fields), int(query.column[i]))
                k = (*(int(getattr(key, f)[b, j]) for f in fields), int(key.column[j]))
                see[b, i, j] = looks(q, k, layout)
    return see


def cells(block, segment=None, copy=None, valid=None):
    block = torch.tensor(block)
    zeros = torch.zeros_like(block)

    def given(value):
        return zeros if value is None else torch.tensor(value)

    ok = torch.ones_like(block, dtype=torch.bool) if valid is None else torch.tensor(valid).bool()
    return Cells(block, given(segment), given(copy), ok, torch.arange(block.shape[1]))


@given(st.data(), st.sampled_from(LAYOUTS))
@settings(max_examples=60, deadline=None)
def test_any_canvas_equals_the_triple_loop(data, layout):
    def table(rows, columns, top):
        row = st.lists(st.integers(0, top), min_size=columns, max_size=columns)
        return data.draw(st.lists(row, min_size=rows, max_size=rows))

    q = cells(*(table(2, 5, top) for top in (3, 2, 2, 1)))
    k = cells(*(table(2, 6, top) for top in (3, 2, 2, 1)))
    assert torch.equal(allowed(q, k, layout), brute(q, k, layout))


PACKED = packed_row([1, 1], [([2, 3], [4, 5]), ([6], [7, 8, 9])], copies=2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "rows",
    [
        [prompt_row([1, 2, 3], [4, 5, 6, 7], [True] * 4), prompt_row([1], [2], [True])],
        [PACKED, packed_row([1], [([2], [3])], copies=1)],
    ],
)
def test_padded_and_packed_rows_equal_the_triple_loop(rows, layout):
    every = Cells.of(collate(rows, pad_id=0))
    assert torch.equal(allowed(every, every, layout), brute(every, every, layout))


def test_full_sees_every_valid_cell():
    every = cells([[0, 0, 1, 2]], valid=[[0, 1, 1, 1]])
    expected = torch.tensor([[[False, True, True, True]] * 4])
    assert torch.equal(allowed(every, every, "full"), expected)


def test_prefix_prompt_never_sees_the_answer_and_the_answer_sees_all():
    every = cells([[0, 0, 1, 2, 3]])
    see = allowed(every, every, "prefix")[0]
    assert not bool(see[:2, 2:].any())
    assert bool(see[:2, :2].all())
    assert bool(see[2:].all())


def test_block_is_causal_over_blocks_and_full_inside():
    block = [0, 0, 1, 1, 2, 2]
    see = allowed(cells([block]), cells([block]), "block")[0]
    for i, q in enumerate(block):
        for j, k in enumerate(block):
            assert bool(see[i, j]) == (k <= q)


def test_block_diffusion_mask_of_noisy_and_clean_halves():
    """BD3-LM §3.2: a noisy block sees itself and the clean blocks before it; a clean block sees
    clean blocks up to its own; nothing clean ever sees noise."""
    block = [1, 1, 2, 2, 3, 3]
    every = cells([block + block], copy=[[1] * 6 + [0] * 6])
    see = allowed(every, every, "block")[0]
    for i, q in enumerate(block):
        for j, k in enumerate(block):
            assert bool(see[i, j]) == (q == k)  # block diagonal
            assert bool(see[i, 6 + j]) == (k < q)  # offset block causal
            assert bool(see[6 + i, 6 + j]) == (k <= q)  # block causal
            assert not bool(see[6 + i, j])


def test_packed_questions_share_the_picture_and_nothing_else():
    every = Cells.of(collate([PACKED], pad_id=0))
    see = allowed(every, every, "prefix")[0]
    group = list(zip(PACKED.segment, PACKED.copy, PACKED.block, strict=True))
    for i, (q_segment, q_copy, q_block) in enumerate(group):
        for j, (k_segment, k_copy, k_block) in enumerate(group):
            shared = k_segment == 0
            prompt = k_segment == q_segment and k_block == 0
            twin = k_segment == q_segment and k_copy == q_copy and q_block == k_block == 1
            assert bool(see[i, j]) == (shared or prompt or twin)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_window_is_a_slice_of_the_whole(layout):
    canvas = collate([prompt_row([1, 2, 3], [4, 5, 6, 7], [True] * 4)], pad_id=0)
    canvas.block = torch.tensor([[0, 0, 0, 1, 1, 2, 2]])
    whole = allowed(Cells.of(canvas), Cells.of(canvas), layout)
    part = allowed(Cells.of(canvas, 3, 6), Cells.of(canvas, 0, 6), layout)
    assert torch.equal(part, whole[:, 3:6, :6])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_of_each_rows_own_are_picked_from_the_whole(layout):
    rows = [prompt_row([1] * n, [2] * 6, [True] * 6) for n in (2, 5)]
    canvas = collate(rows, pad_id=0)
    columns = torch.tensor([[4, 6, 9], [1, 2, 8]])
    whole = allowed(Cells.of(canvas), Cells.of(canvas), layout)
    got = allowed(Cells.at(canvas, columns), Cells.of(canvas), layout)
    assert torch.equal(got, whole[torch.arange(2)[:, None], columns])


def test_unknown_layout():
    one = cells([[0]])
    with pytest.raises(SettingError, match=r"layout 'casual' is unknown.*full"):
        allowed(one, one, "casual")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_additive_mask_is_finite_and_hides_exactly(dtype):
    see = torch.tensor([[[True, False], [False, False]]])
    mask = additive(see, dtype)
    assert mask.shape == (1, 1, 2, 2)
    assert mask.dtype == dtype
    assert bool(mask.isfinite().all())
    assert float(mask[0, 0, 0, 0]) == 0
    assert float(mask[0, 0, 0, 1]) == pytest.approx(HIDDEN, rel=1e-2)
    # A hidden key with a far larger score still gets no weight at all; an empty row is no NaN.
    weights = (torch.tensor([[-50.0, 50.0], [1.0, 2.0]]).to(dtype) + mask).softmax(-1)
    assert float(weights[0, 0, 0, 1]) == 0
    assert bool(weights.isfinite().all())


def test_no_mask_when_everything_is_allowed():
    assert additive(torch.ones(2, 3, 4, dtype=torch.bool), torch.float32) is None
