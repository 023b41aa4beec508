"""Every command and the Python snippet of the README run, with the built-in model."""

import re
import shlex
from pathlib import Path

import pytest

from mmdiff.cli.main import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.removeprefix("mmdiff ")
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.startswith("mmdiff ")
]
# A full training run takes an hour: the same command with fewer and smaller steps.
SHORT = ["max_steps=2", "batch_size=2", "turns=1", "workers=0", "save_every=1", "validate_every=2"]


@pytest.fixture
def in_a_copy(tmp_path, monkeypatch):
    """Commands write into a scratch folder that sees the pictures as the checkout does."""
    (tmp_path / "mmdiff").mkdir()
    (tmp_path / "mmdiff" / "pictures").symlink_to(ROOT / "mmdiff" / "pictures")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_commands():
    assert len(COMMANDS) >= 8
    assert any(command.startswith("train") for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, in_a_copy, capsys):
    arguments = shlex.split(command)
    if arguments[0] == "train":
        before = [c for c in COMMANDS[: COMMANDS.index(command)] if c.startswith("train")]
        for earlier in before:  # a later stage goes on from an earlier one's folder
            assert main(shlex.split(earlier) + SHORT) == 0
        arguments += SHORT
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip()


def test_snippet(in_a_copy, capsys):
    snippet = re.search(r"```python\n(.*?)```", README, re.S)[1]
    exec(compile(snippet, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.strip().splitlines()) == 3
