"""Which rows the table of decoding rules has, and what a row says."""

import pytest

from mmdiff.config import shipped
from mmdiff.decoding.rules import RULES, named
from mmdiff.decoding.settings import make_decoding
from mmdiff.errors import SettingError
from mmdiff.eval.decoding import PLAIN, Row, Way, front, picked, row_of, ways
from mmdiff.eval.tabletop import Result


def test_every_registered_rule_and_preset_has_a_row(monkeypatch):
    def tried():
        made = [make_decoding({"max_new_tokens": 16}, way.settings) for way in ways(16)]
        return {(s, getattr(way, s).partition(":")[0]) for way in made for s in RULES}

    known = {(setting, name) for setting, rules in RULES.items() for name in rules.names()}
    assert known <= tried()
    names = [way.name for way in ways(16)]
    assert {f"preset={name}" for name in shipped("decode")} <= set(names)
    assert names[0] == "one cell per step" and len(set(names)) == len(names)

    monkeypatch.setitem(RULES["stop"]._parts, "brand_new", object())
    assert ("stop", "brand_new") in tried()


def test_no_settings_are_measured_twice():
    made = [repr(sorted(way.settings.items())) for way in ways(64)]
    assert len(set(made)) == len(made)


def test_some_rows_beside_the_first():
    listed = ways(16)
    assert picked(listed, []) == listed
    some = [way.name for way in picked(listed, ["cache=", "length=dynamic"])]
    assert some[0] == "one cell per step" and {"cache=dual", "length=dynamic"} <= set(some)
    assert all(name.startswith(("one", "cache=", "length=dynamic")) for name in some)
    with pytest.raises(SettingError, match="no row of the table is called 'cash='"):
        picked(listed, ["cash="])


def test_a_rule_with_what_it_needs():
    assert named("accept", "entropy_bound") == {"order": "entropy", "accept": "entropy_bound"}
    assert named("cache", "dual") == {"cache": "dual"}


def test_a_row_against_the_plain_one():
    def made(marks, nfe, seconds):
        return [Result("", bool(m), nfe, 8, seconds, "", "", 0.25) for m in marks]

    plain = row_of(Way("plain", PLAIN), made([1, 0], 8, 0.5), None)
    row = row_of(Way("quick", {}), made([1, 1], 2, 0.25), plain)
    assert (row.quality, row.nfe, row.nfe_per_token, row.fewer_nfe) == (1.0, 2.0, 0.25, 4.0)
    assert row.change[0] == pytest.approx(0.5)
    assert (row.tokens_per_second, row.outside) == (32.0, 0.25)
    assert "results" not in row.figures() and "error" not in row.figures()


def test_the_front_holds_what_nothing_beats():
    figures = ((4, 0.5), (2, 0.5), (2, 0.4), (8, 0.9), (16, 0.9), (9, 0.7))
    rows = [Row(f"{n}", {}, quality=q, nfe=n) for n, q in figures]
    assert [(row.nfe, row.quality) for row in front(rows)] == [(2, 0.5), (8, 0.9)]
