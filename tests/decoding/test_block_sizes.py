"""Blocks of chosen sizes against the rule on lists, one row at a time."""

import pytest
import torch

from mmdiff.errors import SettingError
from tests.decoding.helpers import CELLS, answers, batch, fill, requests
from tests.decoding.plain_layers import said

HIGH = 0.6


def dynamic(least, above, most):
    """The size of a block from its cells' probabilities and ids."""

    def size(chance, ids):
        for n in range(least, min(most, len(chance))):
            if chance[n] < above:
                return n
        return most

    return size


def adablock(name, sure, window, default):
    def size(chance, ids):
        found = [(p, -n) for n, (p, i) in enumerate(zip(chance, ids, strict=True))
                 if i == name and n < window]  # fmt: skip
        best, place = max(found, default=(-1, 0))
        return 1 - place if best >= sure else default

    return size


def by_hand(model, row, size):
    """Answer, calls and block sizes of one row; every cell surer than HIGH, the best always."""
    view = batch(model, row)
    start, calls, sizes, end = view.prompt_length, 0, [], 0
    while bool(view.masked.any()):
        ids, chance = said(model, model.hidden(view, model.embed(view))[0, start:])
        calls += 1
        masked = view.masked[0, start:].nonzero()[:, 0].tolist()
        if masked[0] >= end:
            sizes.append(size(chance[masked[0] :], ids[masked[0] :]))
            end = masked[0] + sizes[-1]
        opened = [c for c in masked if c < end]
        best = max(opened, key=lambda c: chance[c])
        for c in opened:
            if c == best or chance[c] >= HIGH:
                view.ids[0, start + c], view.masked[0, start + c] = ids[c], False
    return view.ids[0, start:].tolist(), calls, sizes


@torch.inference_mode()
@pytest.mark.parametrize("block_length", [2, 4, None])
@pytest.mark.parametrize(("least", "above"), [(1, 0.5), (2, 0.3), (1, 0.0), (1, 1.0)])
def test_dynamic_equals_the_rule_row_by_row(model, block_length, least, above):
    model.config.attention_layout = "full"
    rule = {"accept": f"threshold:value={HIGH}", "block_length": block_length, "cache": "none"}
    made = fill(model, *requests(model), length=f"dynamic:least={least},above={above}", **rule)
    size = dynamic(least, above, block_length or CELLS)
    expected = [by_hand(model, row, size) for row in requests(model)]
    assert answers(made) == [ids for ids, _, _ in expected]
    assert made.nfe.tolist() == [calls for _, calls, _ in expected]
    if (least, above, block_length) == (1, 0.5, 4):
        assert len({n for _, _, sizes in expected for n in sizes}) > 1


@torch.inference_mode()
@pytest.mark.parametrize(("share", "sure"), [(0.5, 0.0), (0.9, 0.2), (0.9, 0.9)])
def test_adablock_equals_the_rule_row_by_row(model, share, sure):
    model.config.attention_layout = "full"
    first = batch(model, *requests(model))
    ids, _ = said(model, model.hidden(first, model.embed(first))[0, first.prompt_length :])
    name = ids[1]  # predicted second in the first row
    rule = {"accept": f"threshold:value={HIGH}", "block_length": 4, "cache": "none"}
    length = f"adablock:id={name},sure={sure},share={share}"
    made = fill(model, *requests(model), length=length, **rule)
    size = adablock(name, sure, int(share * CELLS), 4)
    expected = [by_hand(model, row, size) for row in requests(model)]
    assert answers(made) == [ids for ids, _, _ in expected]
    assert made.nfe.tolist() == [calls for _, calls, _ in expected]
    if sure == 0.0:
        assert expected[0][2][0] < 4


@pytest.mark.parametrize("cache", ["dual", "suffix", "delayed", "block"])
def test_caches_follow_the_blocks(model, cache):
    """Rows stay on their own, and the block cache stays exact."""
    model.config.attention_layout = "block" if cache == "block" else "full"
    rule = {"accept": "threshold:value=0.3", "length": "dynamic", "block_length": 4}
    made = fill(model, *requests(model), cache=cache, **rule)
    for i, row in enumerate(requests(model)):
        assert answers(fill(model, row, cache=cache, **rule))[0] == answers(made)[i]
    if cache == "block":
        assert answers(fill(model, *requests(model), cache="none", **rule)) == answers(made)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"accept": "schedule"}, "does not go with accept=schedule"),
        ({"remask": "revise"}, "does not go with remask=revise"),
        ({"speculate": "freedave", "cache": "none"}, "does not go with speculate=freedave"),
        ({"length": "dynamic:least=9", "block_length": 4}, "least=9 is more than block_length=4"),
        ({"length": "adablock:share=2"}, "share=2 must lie in"),
        ({"length": "adablock:id=1.5"}, "id=1.5 must be a whole number"),
    ],
)
def test_what_does_not_go_together_is_refused(model, settings, words):
    rule = {"length": "dynamic", "accept": "threshold"}
    with pytest.raises(SettingError, match=words):
        fill(model, requests(model)[0], **(rule | settings))


def test_a_checkpoint_of_fixed_blocks_is_refused(model):
    model.config.attention_layout, model.config.block_size = "block", 4
    with pytest.raises(SettingError, match="knows blocks of 4 cells alone"):
        fill(model, requests(model)[0], length="dynamic", accept="threshold")
