"""Progress on stderr: silent for short work, a line now and then without a terminal, else a bar."""

import io

from mmdiff.cli import _progress
from mmdiff.cli._progress import Progress


def test_short_work_says_nothing(capsys):
    with Progress(3, "pictures") as progress:
        progress.advance(1)
    assert capsys.readouterr() == ("", "")


def test_long_work_says_a_line_but_not_at_the_end(capsys, monkeypatch):
    monkeypatch.setattr(_progress, "QUIET_SECONDS", 0)
    with Progress(3, "pictures") as progress:
        progress.advance(1, "loss 2")
        progress.advance(1)  # too soon for another line
        progress.next_line = 0
        progress.advance(1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "mmdiff: 1 of 3 pictures, 0 s, 0 s left  loss 2\n"


def test_a_terminal_shows_a_bar_on_stderr_alone(capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    with Progress(3, "pictures") as progress:
        assert progress.bar is not None
        progress.advance(1, "loss 2")
        print("a result")
    assert capsys.readouterr().out == "a result\n"
