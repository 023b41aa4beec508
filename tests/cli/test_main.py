"""Exit codes and the one-line errors of the `mmdiff` command."""

import pytest

import mmdiff.cli.doctor
from mmdiff.cli.main import main
from mmdiff.errors import InputError


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("mmdiff 0.")
    assert main([]) == 0
    assert "doctor" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["doktor"], ["doctor", "--nothing"], ["--nothing"]])
def test_usage_errors_are_one_line(wrong, capsys):
    assert main(wrong) == 2
    error = capsys.readouterr().err
    assert error.startswith("mmdiff: error: ")
    assert error.count("\n") == 1


def test_an_unknown_command_shows_the_nearest(capsys):
    main(["doktor"])
    assert "Did you mean doctor?" in capsys.readouterr().err


def verb_that(monkeypatch, action):
    def doctor():
        return action()

    monkeypatch.setattr(mmdiff.cli.doctor, "doctor", doctor)


def raising(error):
    def action():
        raise error

    return action


def test_a_user_error_is_one_line_and_2(monkeypatch, capsys):
    verb_that(monkeypatch, raising(InputError("no\npicture")))
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == "mmdiff: error: no picture\n"


def test_an_interrupt_is_130(monkeypatch):
    verb_that(monkeypatch, raising(KeyboardInterrupt()))
    assert main(["doctor"]) == 130


def test_a_bug_keeps_its_traceback(monkeypatch):
    verb_that(monkeypatch, raising(ZeroDivisionError("bug")))
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (2, 2)])
def test_a_verb_may_return_its_exit_code(monkeypatch, returned, code):
    verb_that(monkeypatch, lambda: returned)
    assert main(["doctor"]) == code
