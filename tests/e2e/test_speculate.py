"""Speculation on the shipped model: fewer calls, not one token changed."""

import pytest

import mmdiff
from mmdiff.data.worlds.tabletop import render
from mmdiff.data.worlds.tabletop_sets import load_set

FAST = "freedave:drafts=4"


@pytest.fixture(scope="module")
def tiny():
    return mmdiff.load()


def same(tiny, task, inputs, **settings):
    """Calls without and with speculation of requests that must be answered alike."""
    plain, fast = (
        tiny.run(task, inputs, batch_size=len(inputs), speculate=how, **settings)
        for how in ("none", FAST)
    )
    assert [g.ids for g in fast] == [g.ids for g in plain]
    return sum(g.nfe for g in plain), sum(g.nfe for g in fast)


def questions(count):
    asked = [
        ([render(item.scene)], qa.question)
        for item in load_set("validation")[:count]
        for qa in item.qas
    ]
    return asked[:count]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers(tiny, temperature):
    settings = {"accept": "schedule", "temperature": temperature, "seed": list(range(16))}
    before, after = same(tiny, "answer", questions(16), **settings)
    assert after <= before


def test_captions_take_fewer_calls(tiny):
    pictures = [([render(item.scene)], None) for item in load_set("caption")[:3]]
    before, after = same(tiny, "caption", pictures, accept="schedule")
    assert after < before
