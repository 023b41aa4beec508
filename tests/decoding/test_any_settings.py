"""Whatever the settings: refused before the first step, or an answer without a mask in it."""

import random

import pytest
import torch

from mmdiff.decoding.choose import SCHEDULES
from mmdiff.decoding.loop import decode
from mmdiff.decoding.rules import RULES, named
from mmdiff.decoding.settings import make_decoding, parse_rule
from mmdiff.diffusion.schedule import MASK_SCHEDULES
from mmdiff.errors import SettingError
from tests.decoding.helpers import batch, make_row

TRIES, CELLS, CALLS = 200, 6, 400
NUMBERS = (0, 1e-9, 0.01, 0.3, 0.5, 0.9, 1, 2, 3, 5, 1e9)
ODD = (-1, ".inf", ".nan", 2.5)
# Options that a rule keeps to itself; the others name theirs in `options` or `known`.
OPTIONS = {
    "revise": ("top", "start", "above"),
    "drop": ("least", "share"),
    "stable": ("stability", "confidence"),
    "repeats": ("times",),
    "guided": ("top", "share"),
}
# Cells behind these ends stay masked by definition: behind an end of the text, or of repeats.
AFTER_AN_END, ANYWHERE = ("cut", "block", "batch_block_end"), ("repeats",)
SETTINGS = {
    "steps": (None, 1, 2, 3, 6, 20),
    "block_length": (None, 1, 2, 4, 9),
    "schedule": (*SCHEDULES, *MASK_SCHEDULES),
    "shift": (1e-6, 0.3, 3.0, 1e6),
    "eps": (1e-9, 0.001, 0.5, 0.999),
    "order_temperature": (0.0, 1e-6, 0.5, 1e6),
    "threshold": (0.0, 0.5, 1.0),
    "factor": (0.0, 0.5, 1.0, 1e6),
    "entropy_bound": (0.0, 0.1, 1e6, -1.0),
    "temperature": (1e-6, 0.7, 50.0, 1e-40),
    "temperature_end": (1e-6, 0.5, 1e-40),
    "top_p": (1e-9, 0.5),
    "top_k": (1, 3, 10**6),
    "cfg_scale": (0.5, 100.0),
    "late": (tuple(range(40, 200)), tuple(range(320)), (-1, 10**6)),
    "forbid": ((40,), tuple(range(30, 320)), tuple(range(320)), (10**6,), (-1,)),
    "stop_ids": (tuple(range(20, 120)), tuple(range(320))),
    "seed": ((1, 2), (1,), -5, 2**70),
}


def rule(setting, chance):
    """A rule of a registry with what it needs, and some options."""
    name = chance.choice(RULES[setting].names())
    part = RULES[setting].get(name)
    settings = named(setting, name)
    known = OPTIONS.get(name) or getattr(part, "options", None) or getattr(part, "known", {})
    options = {
        option: chance.choice(ODD if chance.random() < 0.1 else NUMBERS)
        for option in known
        if chance.random() < 0.5
    }
    if name == "grow":  # within reason
        options = {k: v for k, v in options.items() if v in (1, 2, 0.5)} | {"most": 11}
    if options:
        settings[setting] += ":" + ",".join(f"{k}={v}" for k, v in options.items())
    return settings


def some_settings(chance):
    made = {"max_new_tokens": CELLS, "accept": "schedule"}
    for setting in chance.sample(sorted(RULES), chance.choice((1, 1, 2, 3))):
        made |= rule(setting, chance)
    for name in chance.sample(sorted(SETTINGS), chance.randrange(5)):
        made[name] = chance.choice(SETTINGS[name])
    return made


def outcome(model, settings, chance):
    """None where refused, else the canvas and the settings as read."""
    layout = chance.choice(("full", "prefix", "block", "causal", "causal_block"))
    shift, size = chance.random() < 0.3, 4 if layout == "block" and chance.random() < 0.5 else None
    model.config.attention_layout, model.config.shift = layout, shift
    model.config.block_size, model.config.picture_apart = size, layout == "prefix"
    cells = settings["max_new_tokens"]
    holes = ([True] * cells, [chance.random() < 0.6 for _ in range(cells - 1)] + [True])
    grow = "grow" in settings.get("length", "")
    colours = (None, "red") if chance.random() < 0.3 else (None, None)
    rows = [
        make_row(model.processor, text, colour, [True] * cells if grow else own)
        for text, colour, own in zip(("a", "is it red?"), colours, holes, strict=True)
    ]
    try:
        read = make_decoding(settings)
        return decode(model, batch(model, *rows), read, model.processor.end_id), read
    except SettingError:
        return None


def check(filled, read, ends, mask_id):
    canvas = filled.canvas
    assert not canvas.masked.any()
    left = (canvas.ids == mask_id) & canvas.writable
    stop = parse_rule(read.stop)[0]
    if stop in AFTER_AN_END:
        ended = torch.isin(canvas.ids, torch.tensor(ends)) & canvas.writable
        left &= ended.long().cumsum(1) == 0
    assert stop in ANYWHERE or not left.any()


@pytest.fixture
def calls(model, monkeypatch):
    """Calls of the model so far; too many are a failure."""
    hidden, made = type(model).hidden, []

    def counted(self, *args, **kwargs):
        made.append(0)
        assert len(made) < CALLS, "no end in sight"
        return hidden(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "hidden", counted)
    return made


def decoded(model, settings, chance):
    """Whether the settings were not refused; what they gave is checked."""
    try:
        made = outcome(model, settings, chance)
        if made is not None:
            ends = (model.processor.end_id, *made[1].stop_ids)
            check(*made, ends, model.config.mask_token_id)
        return made is not None
    except Exception as error:
        raise AssertionError(str(settings)) from error


def test_any_settings(model, calls):
    count = 0
    for number in range(TRIES):
        calls.clear()
        chance = random.Random(number)
        count += decoded(model, some_settings(chance), chance)
    assert count > TRIES / 3


@pytest.mark.parametrize("remask", [name for name in RULES["remask"].names() if name != "none"])
def test_cells_masked_again_under_every_stop(model, calls, remask):
    """Ends that come early and go again."""
    count = 0
    for number in range(TRIES // 8):
        calls.clear()
        chance = random.Random(number)
        stop = ("end_of_text", *AFTER_AN_END)[number % 4]
        settings = {"max_new_tokens": 12, "stop": stop, "stop_ids": tuple(range(20, 60))}
        settings |= {"steps": 6, "temperature": 1.0, "seed": number, **named("remask", remask)}
        count += decoded(model, settings, chance)
    assert count > TRIES / 16
