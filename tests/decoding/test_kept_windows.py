"""cache=freeze and greedy against loops over columns, one row at a time."""

import pytest
import torch

from mmdiff.decoding.windows import Windows, near
from mmdiff.errors import SettingError
from tests.decoding.helpers import CELLS, REQUESTS, answers, batch, fill, make_row, requests
from tests.decoding.plain_layers import PlainLayers, said


@pytest.fixture
def fed(monkeypatch):
    """Columns that each call fed, in order; for single rows."""
    calls, plain = [], Windows._hidden

    def noting(self, canvas, rows, columns):
        calls.append(columns[0].tolist())
        return plain(self, canvas, rows, columns)

    monkeypatch.setattr(Windows, "_hidden", noting)
    return calls


def by_hand(model, row, columns_of, chosen_of):
    """Answer and fed columns of one row: `columns_of(step, masked, before)` are fed,
    `chosen_of(masked, chance)` decided; masked and before are columns."""
    view = batch(model, row)
    layers, length = PlainLayers(model, view), view.shape[1]
    masked = view.masked[0].nonzero()[:, 0].tolist()
    embeds, before, calls = model.embed(view)[0], masked, []
    while masked:
        columns = columns_of(len(calls), masked, before, length)
        calls.append(columns)
        ids, chance = said(model, layers.run(embeds[columns], columns))
        ids, chance = dict(zip(columns, ids, strict=True)), dict(zip(columns, chance, strict=True))
        before = masked
        for column in chosen_of(masked, chance):
            view.ids[0, column] = ids[column]
            embeds[column] = model.get_input_embeddings()(view.ids[0, column])
            masked = [c for c in masked if c != column]
    return view.ids[0, view.prompt_length :].tolist(), calls


@torch.inference_mode()
@pytest.mark.parametrize("request_number", [0, 1])
def test_freeze(model, fed, request_number):
    model.config.attention_layout, model.config.picture_apart = "full", False
    row, width = make_row(model.processor, *REQUESTS[request_number]), 2

    def opened(masked, length):
        number = (masked[0] - length + CELLS) // width
        return length - CELLS + number * width

    def columns(step, masked, before, length):
        first = opened(masked, length) if step else 0
        return sorted({*range(first, length), *(before if step else [])})

    def chosen(masked, chance):
        length = batch(model, row).shape[1]
        start = opened(masked, length)
        return [max((c for c in masked if c < start + width), key=lambda c: chance[c])]

    filled = fill(model, row, cache="freeze", block_length=width)
    assert (answers(filled)[0], fed) == by_hand(model, row, columns, chosen)


@torch.inference_mode()
@pytest.mark.parametrize(("reload", "window"), [(2, 4), (3, 1), (9, 0)])
def test_greedy(model, fed, reload, window):
    model.config.attention_layout, model.config.picture_apart = "full", False
    row, count = make_row(model.processor, *REQUESTS[0]), 2
    left, right = window - window // 2, window // 2

    def columns(step, masked, before, length):
        if step % reload == 0:
            return list(range(length))
        now = masked[:count]
        beside = {c for c in masked if any(n - left <= c <= n + right for n in now)}
        return sorted({*now, *beside, *(c for c in before if c not in masked)})

    rule = {"accept": "schedule", "order": "left_to_right", "steps": CELLS // count}
    filled = fill(model, row, cache=f"greedy:reload={reload},window={window}", **rule)
    expected = by_hand(model, row, columns, lambda masked, chance: masked[:count])
    assert (answers(filled)[0], fed) == expected


def test_greedy_with_full_reloads_is_the_plain_random_order(model):
    """What is known beforehand is what would have been chosen."""
    rule = {"accept": "schedule", "order": "random", "steps": 4, "seed": (1, 2, 3)}
    for more in ({}, {"cfg_scale": 0.5}, {"temperature": 1.0, "block_length": 3}):
        plain, greedy = (
            fill(model, *requests(model), cache=c, **rule, **more)
            for c in ("none", "greedy:reload=1")
        )
        assert answers(plain) == answers(greedy)


def test_near():
    cells = torch.tensor([[0, 0, 0, 1, 0, 0, 0, 0, 1], [0] * 9]).bool()
    made = near(cells, 2, 1).int().tolist()
    assert made == [[0, 1, 1, 1, 1, 0, 1, 1, 1], [0] * 9]
    assert torch.equal(near(cells, 0, 0), cells)


@pytest.mark.parametrize(
    "settings",
    [{"accept": "threshold"}, {"order": "margin"}, {"remask": "revise"}, {"late": (5,)}],
)
def test_greedy_refuses_what_asks_the_model(model, settings):
    rule = {"accept": "schedule", "order": "random", "cache": "greedy"}
    with pytest.raises(SettingError, match="must know a step's cells beforehand"):
        fill(model, *requests(model), **(rule | settings))
