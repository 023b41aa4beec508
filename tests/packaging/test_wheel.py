"""The built wheel holds every source file and the built-in model."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("encoders", "heads", "data", "eval", "configs")
DATA_SUFFIXES = {".yaml", ".json", ".png", ".jpg"}


def inside(path):
    """Where a file of the tree stands in the wheel."""
    parts = path.relative_to(ROOT).parts
    return str(PurePosixPath(*(parts if parts[0] == "mmdiff" else ("mmdiff", *parts))))


def tree(keep):
    files = (path for folder in ("mmdiff", *FOLDERS) for path in (ROOT / folder).rglob("*"))
    return {
        inside(path)
        for path in files
        if path.is_file() and "__pycache__" not in path.parts and keep(path)
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    copy = tmp_path_factory.mktemp("source") / "mmdiff"
    copy.mkdir()
    for folder in ("mmdiff", *FOLDERS):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "."]
    done = subprocess.run(
        [*command, "-w", "out"], cwd=copy, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    return next((copy / "out").glob("*.whl"))


def test_every_source_file_is_in_the_wheel(wheel):
    built = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    assert built == tree(lambda path: path.suffix == ".py")


def test_data_files_and_the_tiny_model_are_in_the_wheel(wheel):
    built = set(zipfile.ZipFile(wheel).namelist())
    assert "mmdiff/py.typed" in built
    expected = tree(lambda path: path.suffix in DATA_SUFFIXES or "tiny" in path.parts)
    assert not expected - built


def test_the_installed_wheel_imports_outside_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import mmdiff.configs, mmdiff.data, sys; print(mmdiff.__file__)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, 'site'); {code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert str(Path("site") / "mmdiff") in done.stdout


def test_the_wheel_has_the_command_and_the_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    points = next(name for name in names if name.endswith("entry_points.txt"))
    assert "mmdiff = mmdiff.cli.main:main" in zipfile.ZipFile(wheel).read(points).decode()
    assert any(name.endswith("licenses/LICENSE") for name in names)
