"""`mmdiff convert`."""

import pytest

from tests.checkpoints.helpers import write
from tests.checkpoints.starts import write_decoder


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


def test_convert_to_diffusion(run, tmp_path):
    write_decoder(tmp_path / "decoder", "qwen3")
    start = ["convert", tmp_path / "decoder", tmp_path / "start", "--to-diffusion"]
    outcome = run(*start, "--layout", "block_causal", "block_length=8", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    (row,) = outcome.rows
    assert (row["family"], row["layout"], row["attention_layout"]) == ("qwen3", "mmdiff", "block")
    assert (row["shift"], row["mask_token"], row["mask_token_id"]) == (False, "<|mask|>", 259)
    facts = run("info", tmp_path / "start", "--json").rows[0]
    assert facts["attention_layout"] == "block"
    assert facts["decoding"] == {"max_new_tokens": 128, "block_length": 8}
    start[2] = tmp_path / "other"
    outcome = run(*start, "--no-shift", "--mask-token", "[MASK]")
    assert outcome.code == 0
    assert "full attention, cell i is predicted at i, the mask token is [MASK] (259)" in outcome.out


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
        (["SOURCE", "NEW", "--layout", "full"], "layout goes with --to-diffusion"),
        (["SOURCE", "NEW", "--no-shift"], "shift goes with --to-diffusion"),
        (["SOURCE", "NEW", "block_length=4"], "block_length goes with --to-diffusion"),
        (["SOURCE", "NEW", "--to-diffusion"], "is no autoregressive model"),
        (["SOURCE", "NEW", "--to-diffusion", "--layout", "ful"], "Did you mean full?"),
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
