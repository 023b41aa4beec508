"""Batches of similar length: a seeded order that keeps every sample."""

import random
from itertools import chain

import pytest
import torch

from mmdiff.data.grouped import Grouped, grouped
from mmdiff.data.source import Sample, Turn
from mmdiff.errors import SettingError
from mmdiff.training.batches import Batches
from mmdiff.training.sources import open_source
from tests.data.malformed import row
from tests.training.test_sources import llava_folder, recipe


class Numbers:
    """Samples whose length is drawn from their number."""

    def sample(self, index, seed, turns, split):
        return Sample(index, (), (Turn("how many?", "a " * self.length(index, seed), 8),))

    def name(self, index, seed, split):
        return f"number {index}"

    def length(self, index, seed):
        return random.Random(index + 1000 * seed).randrange(1, 40)


def test_runs_of_similar_length():
    lengths = [random.Random(i).randrange(100) for i in range(60)]
    order = grouped(lengths, 6, seed=3, window=2)
    assert sorted(order) == list(range(60))
    runs = [[lengths[i] for i in order[n : n + 6]] for n in range(0, 60, 6)]
    assert sorted(runs) != runs
    assert list(chain(*sorted(runs))) == sorted(lengths)
    assert order == grouped(lengths, 6, seed=3, window=2)
    others = [grouped(lengths, 6, seed, window) for seed, window in ((3, 1), (4, 2))]
    assert all(sorted(order) == list(range(60)) != order for order in others)
    assert order not in others


def test_a_window_keeps_its_samples_wherever_one_begins():
    source = Grouped(Numbers(), size=4, batches=5)
    places = [source.place(i, 7) for i in range(60)]
    for first in (0, 20, 40):
        assert sorted(places[first : first + 20]) == list(range(first, first + 20))
    again = Grouped(Numbers(), size=4, batches=5)
    backwards = [again.place(i, 7) for i in reversed(range(60))]
    assert backwards == places[::-1]
    lengths = [source.length(i, 7) for i in range(60)]
    spread = max(max(lengths[i : i + 4]) - min(lengths[i : i + 4]) for i in range(0, 60, 4))
    assert spread < 25
    assert source.sample(9, 7, 0, "train").index == 9
    assert source.name(9, 7, "train") == f"number {places[9]}"


def long_and_short(count):
    return [
        row(f"r{i}", None, "how many? " * (1 + i * 7 % 13), "a star " * (1 + i % 5))
        for i in range(count)
    ]


def test_processes_and_parts_share_the_same_batches_of_less_padding(tmp_path, model):
    folder = llava_folder(tmp_path, long_and_short(64))
    made = {"validation": 0.02, "batch_size": 8, "max_steps": 6, "row_cells": 8, "answer_cells": 1}
    padding = {}
    for window in (0, 6):
        settings = recipe(folder, group_lengths=window, **made)
        source = open_source(settings, processor=model.processor, limit=256)

        def ids(number, share=(0, 1), parts=1, settings=settings, source=source):
            batch = Batches(source, model.processor, settings, True, "train", share, parts)[number]
            canvas = batch.canvas
            return [
                tuple(i[v].tolist()) for i, v in zip(canvas.ids, canvas.valid, strict=True)
            ], int((~canvas.valid).sum())

        whole = [ids(step) for step in range(6)]
        padding[window] = sum(count for _, count in whole)
        for step in range(6):
            halves = [ids(step, (which, 2))[0] for which in (0, 1)]
            assert halves[0] + halves[1] == whole[step][0]
            parts = [ids(2 * step + part, parts=2)[0] for part in (0, 1)]
            assert parts[0] + parts[1] == whole[step][0]
    assert padding[6] < 0.5 * padding[0]


def test_lengths_are_those_of_the_conversations(tmp_path, model):
    folder = llava_folder(tmp_path, long_and_short(20))
    source = open_source(recipe(folder, group_lengths=2), processor=model.processor)
    lengths = torch.tensor([source.length(i, 0) for i in range(18)])
    assert int(lengths.min()) > 0
    assert len(set(lengths.tolist())) > 5


def test_a_generated_world_has_one_length():
    with pytest.raises(SettingError, match="of one length"):
        open_source(recipe("tabletop", group_lengths=4))
