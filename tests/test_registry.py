import sys

import pytest

from mmdiff.errors import MissingExtraError, MMDiffError, SettingError, nearest, require
from mmdiff.registry import Registry


def filled():
    registry = Registry("fruit")
    registry.register("pear")("a pear")
    registry.register("apple")("an apple")
    return registry


def test_register_returns_the_part_and_get_finds_it():
    registry = Registry("rule")

    @registry.register("half")
    def half(x):
        return x / 2

    assert half(4) == 2
    assert registry.get("half") is half


def test_names_are_sorted_and_membership_works():
    registry = filled()
    assert registry.names() == ["apple", "pear"]
    assert "pear" in registry
    assert "plum" not in registry


def test_unknown_name_lists_the_nearest_and_the_known():
    with pytest.raises(SettingError, match=r"unknown fruit 'aple'.* mean apple\?.*apple, pear"):
        filled().get("aple")


def test_unknown_name_in_an_empty_registry():
    with pytest.raises(SettingError, match="Known: none"):
        Registry("fruit").get("pear")


def test_a_duplicate_is_a_bug():
    with pytest.raises(RuntimeError, match="registered twice"):
        filled().register("pear")("another")


def test_modules_load_on_the_first_lookup(tmp_path, monkeypatch):
    (tmp_path / "late_fruit.py").write_text(
        "from mmdiff.registry import Registry\n"
        "import __main__\n"
        "__main__.fruit_registry.register('fig')('a fig')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("fruit", ("late_fruit",))
    monkeypatch.setattr(sys.modules["__main__"], "fruit_registry", registry, raising=False)
    assert "late_fruit" not in sys.modules
    assert registry.get("fig") == "a fig"


def test_a_module_that_fails_to_import_fails_every_time():
    registry = Registry("fruit", ("mmdiff.no_such_module",))
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError):
            registry.names()


def test_nearest_is_empty_when_nothing_is_near():
    assert nearest("steps", ["step", "temperature"]) == " Did you mean step?"
    assert nearest("xyz", ["step"]) == ""


def test_require_names_the_extra():
    assert require("json", "vision").dumps(1) == "1"
    text = r"maps needs the package no_such_package: pip install 'mmdiff\[vision\]'"
    with pytest.raises(MissingExtraError, match=text):
        require("no_such_package.part", "vision", "maps")


def test_require_reports_a_package_that_does_not_load(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("raise OSError('no\\nlibrary')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=r"does not load \(no library\)"):
        require("broken_package", "vision")


def test_errors_are_one_line():
    assert str(MMDiffError("two\n  lines")) == "two lines"
