"""`make oldest` installs the lower ends of the ranges that the package promises."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOWER = re.compile(r"([\w-]+)>=([\d.]+)")


def padded(version):
    """1.5 and 1.5.0 are one version."""
    return tuple(map(int, (version + ".0.0").split(".")[:3]))


def pins(text):
    found = re.findall(r"^([\w-]+)==([\d.]+)$", text, re.MULTILINE)
    return {name.lower(): padded(version) for name, version in found}


def test_every_lower_end_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["vision"], *extras["dev"]]
    bounds = dict(found.groups() for line in asked if (found := LOWER.match(line)))
    wanted = {name.lower(): padded(version) for name, version in bounds.items()}
    torch = re.search(r"^OLDEST_TORCH \?= ([\d.]+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert torch is not None and wanted.pop("torch") == padded(torch[1])
    del wanted["setuptools"]  # builds the package, and is no part of running it
    assert pins((ROOT / "constraints-oldest.txt").read_text()) == wanted
