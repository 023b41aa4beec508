"""Where an answer ends."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmdiff.decoding.loop import set_blocks
from mmdiff.decoding.propose import Proposal
from mmdiff.decoding.settings import Decoding
from mmdiff.decoding.stop import STOPS, Repeats, Seen, answer_length, ends_in_repeats
from mmdiff.errors import SettingError
from mmdiff.processing import collate, prompt_row

END, MASK = 1, 0


def canvas(ids, masked, writable=None, prompt=(9, 9)):
    row = prompt_row(prompt, ids, [bool(m) for m in masked])
    if writable is not None:
        row.writable[len(prompt) :] = [bool(w) for w in writable]
    return collate([row], pad_id=0)


def stopped(canvas, end_id=END, rule="end_of_text"):
    ends = [] if end_id is None else [end_id]
    STOPS.get(rule)({})(canvas, torch.tensor(ends, dtype=torch.long))
    return canvas.ids[0, canvas.prompt_length :].tolist(), canvas.masked[0].sum().item()


def test_cells_behind_the_end_become_the_end():
    ids, left = stopped(canvas([5, MASK, END, MASK, 7, MASK], [0, 1, 0, 1, 0, 1], [1] * 6))
    assert ids == [5, MASK, END, END, 7, END]
    assert left == 1


def test_cells_before_the_end_stay_open():
    ids, left = stopped(canvas([MASK, MASK, END], [1, 1, 0], [1] * 3))
    assert ids == [MASK, MASK, END]
    assert left == 2


def test_what_was_cut_off_comes_back_where_its_end_is_taken_away():
    rule = STOPS.get("cut")({}, Decoding(remask="revise"))
    now, ends = canvas([5, END, MASK, MASK], [0, 0, 1, 1], [1] * 4), torch.tensor([END])
    seen = Seen(torch.tensor([0]), now.masked, None)
    rule(now, ends, seen)
    assert not now.masked.any()
    now.ids[0, 3:5] = torch.tensor([8, END])  # both revised: the end, and a cell behind it
    rule(now, ends, seen)
    assert now.ids[0, 2:].tolist() == [5, 8, MASK, MASK]
    assert now.masked[0, 2:].tolist() == [False, False, True, True]


def test_nothing_happens_without_an_end():
    before = [5, MASK, 7]
    assert stopped(canvas(before, [0, 1, 0], [1] * 3)) == (before, 1)
    assert stopped(canvas([END, MASK], [0, 1], [1] * 2), end_id=None) == ([END, MASK], 1)
    assert stopped(canvas([END, MASK], [0, 1], [1] * 2), rule="none") == ([END, MASK], 1)


def test_an_end_that_was_given_or_stands_in_the_prompt_is_text():
    given_end = canvas([END, MASK, MASK], [0, 1, 1], writable=[0, 1, 1], prompt=(END, 9))
    assert stopped(given_end) == ([END, MASK, MASK], 2)


def test_a_masked_cell_that_holds_the_end_is_not_decided():
    assert stopped(canvas([END, MASK], [1, 1])) == ([END, MASK], 2)


@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=4))
def test_answer_length_equals_the_loop(rows):
    got = answer_length(torch.tensor(rows), [END]).tolist()
    assert got == [row.index(END) + 1 if END in row else 5 for row in rows]
    assert answer_length(torch.tensor(rows), ()).tolist() == [5] * len(rows)


def test_cut_leaves_the_masks_behind_the_end_as_they_are():
    ids, left = stopped(canvas([MASK, END, MASK, 7, MASK], [1, 0, 1, 0, 1], [1] * 5), rule="cut")
    assert ids == [MASK, END, MASK, 7, MASK]
    assert left == 1


def test_other_ids_end_a_text_too():
    row = canvas([5, 6, MASK], [0, 0, 1], [1] * 3)
    STOPS.get("end_of_text")({})(row, torch.tensor([END, 6]))
    assert row.ids[0, 2:].tolist() == [5, 6, END]


def blocks(rows, masked, length=2):
    """Rows of one answer each, in blocks of `length`."""
    made = collate([prompt_row((9, END), i, [bool(x) for x in m])
                    for i, m in zip(rows, masked, strict=True)], pad_id=0)  # fmt: skip
    made.writable[:, 2:] = True
    set_blocks(made, length)
    return made


def test_a_batch_that_ends_together():
    rows, masked = [[5, END, MASK, MASK], [6, END, MASK, MASK]], [[0, 0, 1, 1], [0, 0, 1, 1]]
    made = blocks(rows, masked)
    STOPS.get("batch_block_end")({})(made, torch.tensor([END]))
    assert not bool(made.masked.any())
    made = blocks([[5, END, MASK, MASK], [END, 7, MASK, MASK]], masked)
    STOPS.get("batch_block_end")({})(made, torch.tensor([END]))
    assert made.masked.sum(1).tolist() == [2, 2]
    made = blocks([[MASK, END, MASK, MASK]], [[1, 0, 1, 1]])  # the prompt's end is not one
    STOPS.get("batch_block_end")({})(made, torch.tensor([END]))
    assert int(made.masked.sum()) == 3


@pytest.mark.parametrize(
    ("ids", "masked", "left"),
    [
        ([5, END, MASK, MASK, MASK, MASK], "001111", 0),
        ([END, MASK, MASK, MASK, MASK, MASK], "011111", 5),  # its block is not full yet
        ([5, 6, END, 7, MASK, MASK], "000011", 0),
        ([5, 6, 7, 8, MASK, MASK], "000011", 2),
    ],
)
def test_blocks_behind_a_full_one_with_an_end_are_left(ids, masked, left):
    row = canvas(ids, [c == "1" for c in masked], [1] * 6)
    set_blocks(row, 2)
    assert stopped(row, rule="block") == (ids, left)


@given(st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=2), min_size=1, max_size=8))
def test_repeats_equal_the_loop(steps):
    """A batch whose second row leaves after four steps."""
    repeats, history = Repeats(), [[], []]
    for number, step in enumerate(steps):
        rows = [0, 1] if number < 4 else [0]
        got = repeats(torch.tensor([[step[row], 7] for row in rows]), torch.tensor(rows))
        for row, count in zip(rows, got.tolist(), strict=True):
            before = history[row][::-1]
            same = [value == step[row] for value in before]
            assert count == (same.index(False) if False in same else len(same))
            history[row].append(step[row])


def look(row, logits):
    """The stop rule's view: logits (K, V) of the masked cells."""
    none = torch.zeros(len(logits))
    return Seen(torch.tensor([0]), row.masked.clone(), Proposal(none.long(), none, logits))


def test_a_stable_and_confident_block_is_filled_with_the_best_tokens():
    row = canvas([MASK, 5, MASK, MASK], [1, 0, 1, 1], [1] * 4)
    set_blocks(row, 3)
    sure = torch.full((2, 8), -50.0)
    sure[0, 4] = sure[1, 6] = 50.0
    rule = STOPS.get("stable")({"stability": 1, "confidence": 0.1})
    view = look(row, sure)
    view.need[0, -1] = False  # the second block is not open
    rule(row, torch.tensor([END]), view)
    assert row.masked.sum() == 3
    rule(row, torch.tensor([END]), view)
    assert row.ids[0, 2:].tolist() == [4, 5, 6, MASK]
    assert row.masked.sum() == 1


def test_an_unsure_or_changing_block_goes_on():
    for scale, change in ((0.01, False), (50.0, True)):
        row = canvas([MASK, MASK], [1, 1], [1] * 2)
        rule = STOPS.get("stable")({})
        for step in range(4):
            logits = torch.zeros(2, 8)
            logits[:, 3 + (step % 2 if change else 0)] = scale
            rule(row, torch.tensor([END]), look(row, logits))
        assert row.masked.sum() == 2


def test_unknown_stop_options():
    with pytest.raises(SettingError, match=r"no option 'stabilty'\. Did you mean stability"):
        STOPS.get("stable")({"stabilty": 2})
    with pytest.raises(SettingError, match="no option 'x'"):
        STOPS.get("cut")({"x": 2})


@given(st.lists(st.integers(2, 3), max_size=14), st.integers(2, 5))
def test_repeats_at_the_end_equal_the_loop(ids, times):
    expected = False
    for size in range(1, len(ids) + 1):
        count, at = 1, len(ids) - size
        while at >= size and ids[at - size : at] == ids[-size:]:
            count, at = count + 1, at - size
        expected |= count >= times
    assert ends_in_repeats(ids, times) is expected


def test_an_answer_that_repeats_itself_ends_after_its_block():
    def after(ids, options):
        row = canvas(ids, [i == MASK for i in ids], [1] * 6)
        set_blocks(row, 2)
        STOPS.get("repeats")(options)(row, torch.tensor([END]))
        return row.masked[0].sum().item()

    same = [7, 7, 7, 7, MASK, MASK]
    assert after(same, {"times": 4}) == 0
    assert after(same, {"times": 5}) == after(same, {}) == 2
    assert after([7, 7, 7, MASK, MASK, MASK], {"times": 3}) == 3  # its block is still open
    assert after([END, 7, MASK, MASK, MASK, MASK], {}) == 0
    with pytest.raises(SettingError, match="at least 2"):
        STOPS.get("repeats")({"times": 1})
