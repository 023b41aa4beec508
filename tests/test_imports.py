"""Imports stay absolute inside mmdiff and light where a user waits for them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from mmdiff.cli.main import summary, verbs

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("encoders", "heads", "data", "eval", "configs")
SOURCES = sorted(
    path for folder in ("mmdiff", "tests", *FOLDERS) for path in (ROOT / folder).rglob("*.py")
)
HEAVY = {"torch", "transformers", "numpy", "PIL", "timm", "open_clip", "torchvision"}


def imported(path):
    """(module, line) of every import statement in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), node.lineno


def test_root_folders_are_imported_through_mmdiff():
    # `import data` would load a second copy of mmdiff.data when Python runs in the root folder
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in SOURCES
        for module, line in imported(path)
        if module.split(".")[0] in FOLDERS or module.startswith(".")
    ]
    assert not wrong


def fresh(code):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_mmdiff_is_light():
    code = f"import sys, mmdiff; print(*sorted({HEAVY} & set(sys.modules)))"
    assert fresh(code).strip() == ""


def test_help_lists_every_verb_without_importing_torch():
    code = f"""
import sys
from mmdiff.cli.main import main
assert main(["--help"]) == 0
print("heavy:", *sorted({HEAVY} & set(sys.modules)))
"""
    output = fresh(code)
    assert output.strip().endswith("heavy:")
    for verb in verbs():
        assert f" {verb} " in output


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_has_a_summary_and_help_without_torch(verb):
    assert summary(verb)
    code = f"""
import sys
from mmdiff.cli.main import main
assert main([{verb!r}, "--help"]) == 0
assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)
"""
    assert "Usage" in fresh(code)


def test_root_folders_work_without_installation():
    code = "import mmdiff.configs, mmdiff.data; print(mmdiff.configs.__name__)"
    assert fresh(code).strip() == "mmdiff.configs"


def test_public_names_resolve():
    import mmdiff

    for name in mmdiff.__all__:
        assert getattr(mmdiff, name) is not None
        assert name in dir(mmdiff)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mmdiff.nothing
