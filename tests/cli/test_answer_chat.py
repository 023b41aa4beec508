"""`mmdiff answer`, `mmdiff chat` and `mmdiff demo`."""

import io

import pytest


@pytest.fixture
def say(monkeypatch):
    """What stands on stdin."""

    def pipe(text):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))

    return pipe


def test_answer(run, checkpoint, picture):
    outcome = run("answer", picture, "how many circles?", "--model", checkpoint, "--json")
    assert outcome.code == 0
    assert list(outcome.rows[0]) == ["file", "text", "nfe", "seconds"]


def test_a_question_may_look_like_a_setting(run, checkpoint, picture):
    assert run("answer", picture, "x=3?", "--model", checkpoint, "steps=1").code == 0


def test_a_question_without_a_picture(run, checkpoint):
    for arguments in (["how many?"], ["how many?", "steps=1"], ["what is 2.5?"]):
        outcome = run("answer", *arguments, "--model", checkpoint, "--json")
        assert outcome.code == 0
        assert outcome.rows[0]["file"] is None


def test_a_picture_without_a_question(run, checkpoint, picture):
    for name in (picture, "typo.png"):
        outcome = run("answer", name, "--model", checkpoint)
        assert outcome.code == 2
        assert "there is no question" in outcome.err


def test_a_question_without_quotes_is_told(run, checkpoint, picture):
    outcome = run("answer", picture, "how", "many", "--model", checkpoint)
    assert outcome.code == 2
    assert "quotes" in outcome.err


def test_chat_keeps_the_history(run, checkpoint, picture, say, monkeypatch):
    from mmdiff.heads.tasks import Tasks

    seen = []
    plain_run = Tasks.run

    def recorded(self, head, inputs, **settings):
        seen.append([message["role"] for message in inputs[0][1]])
        return plain_run(self, head, inputs, **settings)

    monkeypatch.setattr(Tasks, "run", recorded)
    say("hello\n\nand now?\n/new\nagain\n/quit\nnever\n")
    outcome = run("chat", "--image", picture, "--model", checkpoint, "--json", "max_new_tokens=2")
    assert outcome.code == 0
    assert [row["turn"] for row in outcome.rows] == [1, 2, 3]
    assert seen == [["user"], ["user", "assistant", "user"], ["user"]]


def test_chat_goes_on_after_a_turn_that_is_too_long(run, checkpoint, say):
    say(f"{'long ' * 400}\nshort\n")
    outcome = run("chat", "--model", checkpoint, "--json", "max_new_tokens=2")
    assert outcome.code == 2
    assert "shorten" in outcome.rows[0]["error"]
    assert "text" in outcome.rows[1]


def test_chat_ends_with_its_input(run, checkpoint, say):
    say("")
    assert run("chat", "--model", checkpoint).code == 0


def test_chat_takes_no_words(run, checkpoint):
    outcome = run("chat", "hello", "--model", checkpoint)
    assert outcome.code == 2
    assert "unexpected 'hello'" in outcome.err


def test_demo(run, checkpoint, picture, tmp_path):
    outcome = run(
        "demo", picture, "--model", checkpoint, "--animate", tmp_path / "d.png", "steps=1"
    )
    assert outcome.code == 0
    assert all(name in outcome.out for name in ("picture.png", "table.png", "mmdiff chat"))
    assert (tmp_path / "d.png").is_file()
    rows = run("demo", "--model", checkpoint, "--json", "steps=1").rows
    assert {row["file"] for row in rows} == {"table.png", "toys.jpg", "drawing.png"}
