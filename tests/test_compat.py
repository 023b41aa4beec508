"""The import hook, on stand-in packages that fail the way the real ones do."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

TORCHVISION = """
import torch
from . import extension
if not hasattr(torch.ops.torchvision, "nms"):
    raise RuntimeError("operator torchvision::nms does not exist")
__version__ = "9"
"""

TORCHAUDIO = """
from . import _extension
ready = _extension._IS_TORCHAUDIO_EXT_AVAILABLE
@_extension.fail_if_no_align
def align():
    return 1
"""


def run(code, *paths, check=True):
    """Run `code` in a fresh interpreter that sees mmdiff and, before all else, `paths`."""
    path = [str(each) for each in (*paths, ROOT)]
    setup = f"import sys; sys.path[:0] = {path!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", setup + code], capture_output=True, text=True, timeout=250
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def package(folder, name, **files):
    (folder / name).mkdir()
    for stem, text in files.items():
        (folder / name / f"{stem}.py").write_text(text)


def test_repairs_a_torchvision_without_its_operators(tmp_path):
    package(tmp_path, "torchvision", __init__=TORCHVISION, extension="")
    code = """
import mmdiff, importlib.util
assert importlib.util.find_spec("torchvision") is not None
import torchvision
from mmdiff import compat
from importlib.resources import files
print(torchvision.__version__, compat.status()["torchvision"], files("torchvision").name)
"""
    assert run(code, tmp_path) == "9 repaired torchvision"


def test_repairs_a_torchaudio_without_its_library(tmp_path):
    broken = "raise OSError('Could not load torchaudio/lib/_torchaudio.so')"
    package(tmp_path, "torchaudio", __init__=TORCHAUDIO, _extension=broken)
    code = """
import mmdiff, torchaudio
from mmdiff import compat
assert torchaudio.ready is False
try:
    torchaudio.align()
except RuntimeError as error:
    print(compat.status()["torchaudio"], error)
"""
    assert run(code, tmp_path) == "repaired align needs torchaudio's compiled library"


def test_other_failures_are_reported_as_they_are(tmp_path):
    package(tmp_path, "torchvision", __init__="raise RuntimeError('something\\nelse')")
    package(tmp_path, "torchaudio", __init__="import no_such_thing")
    code = "from mmdiff import compat; print(compat.status())"
    broken = "{'torchvision': 'broken: something else', "
    broken += """'torchaudio': "broken: No module named 'no_such_thing'"}"""
    assert run(code, tmp_path) == broken


def test_a_sound_package_is_left_alone(tmp_path):
    package(tmp_path, "torchvision", __init__="value = 1")
    code = """
import mmdiff, torchvision
from mmdiff import compat
print(torchvision.value, compat.state("torchvision"), compat.state("no_such_package"))
print(type(torchvision.__loader__).__name__, "torch" in sys.modules)
"""
    assert run(code, tmp_path).split("\n") == ["1 ok missing", "SourceFileLoader False"]


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torchvision", "timm", "open_clip"))),
    reason="needs the vision extra",
)
def test_the_installed_packages_load_together():
    code = """
import mmdiff
import timm, open_clip
from transformers import SiglipImageProcessor, SiglipVisionModel
import torchvision.transforms
from mmdiff import compat
print(compat.state("torchvision"))
"""
    assert run(code) in ("ok", "repaired")
