"""A picture and a way to run one command line, for every test of a verb."""

import json
from dataclasses import dataclass

import pytest
from PIL import Image

from mmdiff.cli.main import main


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (48, 40), "red").save(path)
    return str(path)


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def rows(self):
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def run(capsys):
    """Run a command line in this process."""

    def command(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return command
