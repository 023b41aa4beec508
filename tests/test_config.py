import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mmdiff.config import (
    build,
    merge,
    parse_assignments,
    read_yaml,
    split_arguments,
    to_dict,
)
from mmdiff.errors import SettingError


@dataclass(frozen=True)
class Optimiser:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self):
        if self.lr <= 0:
            raise ValueError("lr must be above 0")


@dataclass(frozen=True)
class Named:
    size: int = 1

    @staticmethod
    def expand(written):
        if written == "bad":
            raise SettingError("there is no size bad")
        return {"size": 9} if written == "large" else written


@dataclass(frozen=True)
class Outer:
    inner: Named = Named()


@dataclass(frozen=True)
class Recipe:
    steps: int
    name: str = "base"
    fast: bool = False
    layout: Literal["full", "prefix"] = "full"
    block: int | None = None
    output: Path | None = None
    sizes: tuple[int, ...] = ()
    files: list[str] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    optimiser: Optimiser = Optimiser()
    second: Optimiser | None = None
    extra: Any = None


def make(**settings):
    return build(Recipe, {"steps": 1, **settings}, "r.yaml")


def test_defaults_and_nesting():
    recipe = make(optimiser={"lr": 1, "betas": [0, 0.5]}, second={"lr": 2})
    assert recipe.optimiser == Optimiser(1.0, (0.0, 0.5))
    assert isinstance(recipe.optimiser.lr, float)
    assert recipe.second == Optimiser(2.0)
    assert recipe.name == "base"


@pytest.mark.parametrize(
    ("key", "value", "result"),
    [
        ("fast", "true", True),
        ("fast", "Off", False),
        ("block", None, None),
        ("block", "none", None),
        ("block", 8, 8),
        ("output", "runs/a", Path("runs/a")),
        ("sizes", [1, 2], (1, 2)),
        ("files", ("a",), ["a"]),
        ("weights", {"a": 1}, {"a": 1.0}),
        ("layout", "prefix", "prefix"),
        ("extra", {"any": [1]}, {"any": [1]}),
    ],
)
def test_accepted_values(key, value, result):
    assert getattr(make(**{key: value}), key) == result


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stps": 3}, r"r\.yaml: unknown setting stps\. Did you mean steps\?"),
        ({"optimiser": {"beta": 3}}, r"unknown setting optimiser\.beta\. Did you mean betas\?"),
        ({"steps": 1.5}, "steps must be a whole number, got 1.5"),
        ({"steps": True}, "steps must be a whole number, got True"),
        ({"steps": "many"}, "steps must be a whole number"),
        ({"name": 7}, "name must be text, got 7"),
        ({"fast": 1}, "fast must be true or false"),
        ({"layout": "ful"}, r"layout must be full or prefix, got 'ful'\. Did you mean full\?"),
        ({"block": "x"}, "block must be a whole number or none"),
        ({"sizes": 3}, "sizes must be a list"),
        ({"sizes": [1, "x"]}, r"sizes\[1\] must be a whole number"),
        ({"weights": {"a": "x"}}, r"weights\.a must be a number"),
        ({"optimiser": 3}, "optimiser must be a group of settings"),
        ({"optimiser": {"betas": [0.1]}}, r"optimiser\.betas must have 2 values, got 1"),
        ({"optimiser": {"lr": float("nan")}}, "must be a number"),
        ({"optimiser": {"lr": -1}}, r"r\.yaml: optimiser\.lr must be above 0"),
        ({"second": {"lr": "x"}}, r"second\.lr must be a number"),
        ({3: 3}, "unknown setting 3"),
    ],
)
def test_refused_values(settings, message):
    with pytest.raises(SettingError, match=message) as caught:
        build(Recipe, {"steps": 1, **settings}, "r.yaml")
    assert "\n" not in str(caught.value)


def test_a_missing_setting_and_a_wrong_top():
    with pytest.raises(SettingError, match=r"r\.yaml: the setting steps is missing"):
        build(Recipe, {}, "r.yaml")
    with pytest.raises(SettingError, match="group of settings"):
        build(Recipe, [1], "r.yaml")


def test_to_dict_round_trip():
    recipe = make(output="a/b", sizes=[1], second={"lr": 0.5})
    assert to_dict(recipe)["output"] == "a/b"
    assert to_dict(recipe)["sizes"] == [1]
    assert build(Recipe, yaml.safe_load(yaml.safe_dump(to_dict(recipe)))) == recipe


def test_read_yaml(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("steps: 2\noptimiser: {lr: 1e-4}\n", encoding="utf-8")
    assert build(Recipe, read_yaml(path)).optimiser.lr == 1e-4
    path.write_text("")
    assert read_yaml(path) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: [1\nc: 2\n", r"a\.yaml line \d: not valid YAML"),
        (b"a: 1\na: 2\n", r"line 2: .*the key a stands twice"),
        (b"- 1\n", "expected 'name: value' lines, got list"),
        (b"\xff\xfe\x00", "not a UTF-8"),
        (b"a: !!python/object:os.system {}\n", "line 1"),
        (b"a: \x00", "not valid YAML"),
        (b"[" * 5000, "not valid YAML"),
    ],
)
def test_read_yaml_faults(tmp_path, content, message):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingError, match=message) as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_read_yaml_of_no_file(tmp_path):
    with pytest.raises(SettingError, match="there is no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(SettingError, match="cannot be read"):
        read_yaml(tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-3", -3),
        ("1e-4", 1e-4),
        ("0.5", 0.5),
        ("true", True),
        ("null", None),
        ("none", "none"),
        ("[1, 2]", [1, 2]),
        ("{a: 1}", {"a": 1}),
        ('"7"', "7"),
        ("12:30", "12:30"),
        ("2026-01-02", "2026-01-02"),
        ("threshold:value=0.9", "threshold:value=0.9"),
        ("what is #1?", "what is #1?"),
        ("@x", "@x"),
        ("", ""),
    ],
)
def test_assignment_values(text, value):
    assert parse_assignments([f"a={text}"]) == {"a": value}


def test_assignments_nest_and_the_last_wins():
    assert parse_assignments(["a.b=1", "a.c=2", "d=x", "d=y"]) == {"a": {"b": 1, "c": 2}, "d": "y"}


@pytest.mark.parametrize("bad", [["a"], ["a..b=1"], ["=1"], ["a=1", "a.b=2"], ["a=[1"]])
def test_bad_assignments(bad):
    with pytest.raises(SettingError):
        parse_assignments(bad)


@given(st.text(max_size=20))
def test_any_value_text_is_parsed_or_refused(text):
    # any other exception fails the test; every error text is one line by construction
    with contextlib.suppress(SettingError):
        assert set(parse_assignments([f"a={text}"])) == {"a"}


def test_merge_is_deep_and_leaves_its_inputs_alone():
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(base, {"a": {"b": 9}, "e": 4}) == {"a": {"b": 9, "c": 2}, "d": 3, "e": 4}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge({"a": 1}, {"a": {"b": 1}}) == {"a": {"b": 1}}


def test_split_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("odd=name.png").touch()
    arguments = ["a.png", "steps=4", "odd=name.png", "what is 2=2?", "a.b=c=d", "x" * 5000 + "=1"]
    positional, assignments = split_arguments(arguments)
    assert positional == ["a.png", "odd=name.png", "what is 2=2?"]
    assert assignments == ["steps=4", "a.b=c=d", "x" * 5000 + "=1"]


def test_a_class_expands_shorthand():
    assert build(Outer, {"inner": "large"}).inner == Named(9)
    assert build(Outer, {"inner": {"size": 2}}).inner == Named(2)
    assert build(Outer, {"inner": Named(3)}).inner == Named(3)
    with pytest.raises(SettingError, match=r"mine\.yaml: inner\.there is no size bad"):
        build(Outer, {"inner": "bad"}, "mine.yaml")
    with pytest.raises(SettingError, match="inner must be a group of settings"):
        build(Outer, {"inner": "small"})
