"""Every command and the Python snippet of the README run, with the built-in model."""

import json
import re
import shlex
import shutil
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
WRITTEN = re.compile(r"output[= ](\S+)")
MINE = "\n".join(re.findall(r"```json\n(.*?)```", README, re.S))  # a user's train.json


@pytest.fixture
def in_a_copy(tmp_path, monkeypatch):
    """Commands write into a scratch folder that sees the pictures as the checkout does."""
    (tmp_path / "mmdiff").mkdir()
    (tmp_path / "mmdiff" / "pictures").symlink_to(ROOT / "mmdiff" / "pictures")
    (tmp_path / "mine" / "images").mkdir(parents=True)
    rows = json.loads(MINE)
    rows += [{**rows[0], "id": "2", "image": "dog.jpg"}]
    for name in ("train.json", "val.json"):
        (tmp_path / "mine" / name).write_text(json.dumps(rows))
    for name in ("cat.jpg", "dog.jpg"):
        shutil.copy(ROOT / "mmdiff" / "pictures" / "toys.jpg", tmp_path / "mine" / "images" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_commands():
    assert len(COMMANDS) >= 8
    assert any(command.startswith("train") for command in COMMANDS)


def short(command):
    """The arguments, of a training run with settings that take seconds; a resume takes a step."""
    arguments = shlex.split(command)
    if arguments[0] != "train":
        return arguments
    steps = ["max_steps=3"] if "--resume" in arguments else []
    return [*arguments, *SHORT, *steps]


def needed(command):
    """The commands before this one whose folder it reads."""
    before = COMMANDS[: COMMANDS.index(command)]
    if command.startswith("train tiny"):
        return [c for c in before if c.startswith("train tiny")]
    named = set(re.split(r"[ =]", command))
    return [c for c in before if "--resume" not in c and named & set(WRITTEN.findall(c))]


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, in_a_copy, capsys):
    for earlier in needed(command):  # it goes on from another one's folder
        assert main(short(earlier)) == 0
    arguments = short(command)
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip()


def test_snippet(in_a_copy, capsys):
    snippet = re.search(r"```python\n(.*?)```", README, re.S)[1]
    exec(compile(snippet, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.strip().splitlines()) == 3
