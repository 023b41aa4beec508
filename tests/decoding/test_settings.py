"""Decoding settings: layers, rule options, and values that make no sense."""

import pytest

from mmdiff.decoding.settings import (
    Decoding,
    cooled,
    limited,
    make_decoding,
    parse_rule,
    with_seed,
)
from mmdiff.errors import SettingError


def test_later_layers_win():
    made = make_decoding({"steps": 4, "top_k": 3}, {"steps": 8}, {"temperature": 1})
    assert made == Decoding(steps=8, top_k=3, temperature=1.0)


def test_layers_are_left_alone():
    layers = {"accept": "threshold:value=0.7", "seed": [1, 2]}
    make_decoding(layers)
    assert layers == {"accept": "threshold:value=0.7", "seed": [1, 2]}


def test_threshold_from_a_rule_option():
    made = make_decoding({"accept": "threshold:value=0.7"})
    assert (made.accept, made.threshold) == ("threshold", 0.7)
    assert make_decoding({"accept": "threshold"}).threshold == Decoding().threshold
    assert make_decoding({"accept": "threshold:value=0.7", "threshold": 0.2}).threshold == 0.7


@pytest.mark.parametrize("rule", ["confident", "confident_origin"])
def test_confident_rules_have_a_threshold_too(rule):
    made = make_decoding({"accept": f"{rule}:value=0.7"})
    assert (made.accept, made.threshold) == (rule, 0.7)


def test_a_later_threshold_beats_an_earlier_rule_option():
    checkpoint, user = {"accept": "threshold:value=0.5"}, {"threshold": 0.9}
    assert make_decoding(checkpoint, user).threshold == 0.9
    assert make_decoding(user, checkpoint).threshold == 0.5


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("entropy_bound:value=0", "entropy_bound=0.* above 0"),
        ("threshold:valu=0.5", "no option 'valu'"),
        ("schedule:value=0.5", "accept=schedule has no option 'value'"),
        ("threshold:0.5", "'0.5' is not option=value"),
        ("threshold:value=2", r"threshold=2.* must lie in \[0, 1\]"),
        ("threshold:value=high", "threshold must be a number"),
    ],
)
def test_bad_rules(rule, words):
    with pytest.raises(SettingError, match=words):
        make_decoding({"accept": rule})


def test_parse_rule():
    assert parse_rule("none") == ("none", {})
    assert parse_rule("a:b=1, c=x,d=0.5") == ("a", {"b": 1, "c": "x", "d": 0.5})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"block_length": -1}, "block_length=-1 must be at least 1"),
        ({"top_p": 0}, "top_p=0 keeps no token"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"temperature": -0.5}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"threshold": 1.01}, "threshold"),
        ({"temperature_end": 0.5}, "temperature_end=0.5 must lie above 0"),
        ({"temperature": 1.0, "temperature_end": 0.0}, "must lie above 0"),
        ({"shift": 0}, "shift"),
        ({"shift": float("inf")}, "shift"),
        ({"max_new_tokens": 32, "block_length": 8, "steps": 3}, "fewer than the 4 blocks"),
        ({"stepz": 3}, "Did you mean steps"),
        ({"steps": 2.5}, "steps"),
        ({"steps": True}, "steps"),
        ({"seed": "x"}, "seed"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(SettingError, match=words):
        make_decoding(settings)


def test_the_last_block_may_be_short():
    made = Decoding(max_new_tokens=10, block_length=4, steps=8)
    assert made.blocks == 3
    assert [made.steps_of_block(b) for b in range(3)] == [3, 3, 2]
    assert Decoding(max_new_tokens=10, block_length=99).blocks == 1
    assert Decoding().steps_of_block(0) is None


def test_limited_to_another_region():
    made = limited(Decoding(max_new_tokens=64, block_length=4, steps=16), 10)
    assert (made.max_new_tokens, made.blocks, made.steps) == (10, 3, 16)
    longer = limited(Decoding(max_new_tokens=8, block_length=4, steps=2), 40)
    assert (longer.blocks, longer.steps) == (10, 10)
    assert limited(Decoding(), 3).steps is None


def test_seeds():
    assert with_seed(Decoding(seed=4), 3) == [4, 4, 4]
    assert with_seed(make_decoding({"seed": [1, 2]}), 2) == [1, 2]
    with pytest.raises(SettingError, match="2 seeds for 3 rows"):
        with_seed(make_decoding({"seed": [1, 2]}), 3)


def test_the_temperature_falls_over_the_steps():
    falling = Decoding(steps=4, temperature=0.9, temperature_end=0.5)
    got = [cooled(falling, step).temperature for step in range(6)]
    assert got == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.6, 0.6])
    plain = Decoding(temperature=0.9)
    assert cooled(plain, 3) is plain


def test_a_short_value_of_every_rule_that_has_one():
    assert make_decoding({"accept": "dynamic:value=0.7"}).threshold == 0.7
    made = make_decoding({"accept": "entropy_bound:value=0.3"})
    assert (made.accept, made.entropy_bound) == ("entropy_bound", 0.3)
