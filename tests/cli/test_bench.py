"""`mmdiff bench decode` on the random checkpoint, with a few scenes and a few ways."""

import json

import pytest

from mmdiff.cli.main import main
from mmdiff.data.worlds import tabletop_sets
from mmdiff.eval import decoding
from mmdiff.eval import tabletop as evaluation
from mmdiff.eval.decoding import PLAIN, Way


@pytest.fixture
def _few(monkeypatch):
    """Two scenes of every set, and three ways, of which one is refused."""
    monkeypatch.setattr(
        evaluation, "load_set", lambda name: tuple(tabletop_sets._item(name, i) for i in range(2))
    )
    quick = PLAIN | {"accept": "threshold", "threshold": 0.0}
    refused = PLAIN | {"accept": "entropy_bound"}
    made = [Way("plain", PLAIN), Way("accept=threshold", quick), Way("accept=bound", refused)]
    monkeypatch.setattr(decoding, "ways", lambda cells: made)


@pytest.mark.usefixtures("_few")
@pytest.mark.parametrize("task", ["caption", "vqa"])
def test_rows_a_plot_and_a_results_file(checkpoint, tmp_path, capsys, task):
    command = ["bench", "decode", "--model", checkpoint, "--task", task, "--limit", "2"]
    assert main([*command, "--json", "--output", str(tmp_path / "out")]) == 0
    *rows, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert last["summary"] == {"task": task, "scenes": 2, "rows": 3}
    plain, quick, refused = rows
    assert (plain["rule"], plain["fewer_nfe"], plain["change"]) == ("plain", 1.0, [0.0] * 3)
    assert quick["nfe"] == 1 and quick["fewer_nfe"] == pytest.approx(plain["nfe"])
    assert all(0 < row["outside"] < 1 and row["tokens_per_second"] > 0 for row in rows[:2])
    assert "use it with order=entropy" in refused["error"]
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == rows
    assert (tmp_path / "out" / "decode.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.usefixtures("_few")
def test_the_table(checkpoint, capsys):
    assert main(["bench", "decode", "--model", checkpoint, "--limit", "1"]) == 0
    out = capsys.readouterr().out
    assert "tokens/s" in out and "accept=threshold" in out
    assert "accept=bound: not for this model" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["decod"], "Did you mean decode"),
        (["decode", "--task", "vqq"], "Did you mean vqa"),
    ],
)
def test_unknown_names(arguments, words, capsys):
    assert main(["bench", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_an_output_that_is_a_file(tmp_path, capsys):
    path = tmp_path / "file"
    path.write_text("x")
    assert main(["bench", "decode", "--output", str(path)]) == 2
    assert "is a file" in capsys.readouterr().err
