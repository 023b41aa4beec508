"""`mmdiff convert`."""

import pytest

from tests.checkpoints.helpers import write


@pytest.fixture
def source(tmp_path):
    write(tmp_path / "source", "lavida-llada")
    return tmp_path / "source"


def test_convert_there_and_back(run, source, tmp_path):
    outcome = run("convert", source, tmp_path / "ours", "--json")
    assert outcome.code == 0
    (row,) = outcome.rows
    assert list(row)[:4] == ["source", "output", "family", "layout"]
    assert (row["family"], row["layout"], row["unused"]) == ("lavida-llada", "mmdiff", 2)
    assert outcome.err == (
        "mmdiff: note: left out 2 tensors that the code of lavida-llada never reads\n"
    )
    outcome = run("convert", tmp_path / "ours", tmp_path / "back", "shard_gb=2e-5")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"{row['tensors']} tensors" in outcome.out
    assert "in the layout of lavida-llada" in outcome.out
    assert len(list((tmp_path / "back").glob("model-*.safetensors"))) > 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["SOURCE"], "Missing argument 'DST'"),
        (["SOURCE", "SOURCE"], "exists already"),
        (["SOURCE", "NEW", "more"], "give SRC and DST"),
        (["SOURCE", "NEW", "shards=3"], "Did you mean shard_gb?"),
        (["SOURCE", "NEW", "shard_gb=0"], "shard_gb must be more than 0"),
        (["NEW", "NEW"], "neither a folder nor a built-in name"),
        (["mmdiff/tiny", "NEW"], "of no published family"),
    ],
)
def test_mistakes_are_one_line(run, source, tmp_path, arguments, words):
    places = {"SOURCE": source, "NEW": tmp_path / "new"}
    outcome = run("convert", *(places.get(word, word) for word in arguments))
    assert outcome.code == 2
    assert outcome.err.startswith("mmdiff: error: ")
    assert outcome.err.count("\n") == 1
    assert words in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
