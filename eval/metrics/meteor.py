"""METEOR 1.5 through pycocoevalcap, which brings the Java program, its synonyms and paraphrases.

No Python package restates it with those tables, and without them the figure is another one.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mmdiff.errors import MissingExtraError, require

_OPTIONS = ("-", "-", "-stdio", "-l", "en", "-norm")


def meteor(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, list[float]]:
    """METEOR of the set and of each caption, all as tokens with blanks between.

    Raises MissingExtraError without pycocoevalcap or Java.
    """
    package = require("pycocoevalcap", "eval", "METEOR")
    if shutil.which("java") is None:
        raise MissingExtraError("METEOR needs java: install a Java runtime, such as openjdk-17-jre")
    if not captions:
        return 0.0, []
    folder = Path(next(iter(package.__path__))) / "meteor"
    command = ["java", "-Xmx2G", "-jar", "meteor-1.5.jar", *_OPTIONS]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=folder, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, encoding="utf-8"
    ) as program:
        counts = [
            _ask(program, " ||| ".join(("SCORE", *map(_plain, wanted), _plain(caption))))
            for caption, wanted in zip(captions, references, strict=True)
        ]
        first = _ask(program, " ||| ".join(("EVAL", *counts)))
        rest = [_line(program) for _ in captions]
    scores = [float(line) for line in (first, *rest)]
    return scores[-1], scores[:-1]


def _plain(text: str) -> str:
    """One line without the sign that parts the fields."""
    return " ".join(text.replace("|||", " ").split())


def _ask(program: subprocess.Popen[str], line: str) -> str:
    assert program.stdin is not None
    try:
        program.stdin.write(line + "\n")
        program.stdin.flush()
    except BrokenPipeError:
        pass  # it has ended, which the missing answer tells
    return _line(program)


def _line(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    line = program.stdout.readline().strip()
    if not line:
        raise MissingExtraError("METEOR: java -jar meteor-1.5.jar ended without an answer")
    return line
