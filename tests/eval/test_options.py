"""Likelihoods of options against the model's own logits, and whole runs by likelihood."""

import json

import pytest
import torch
from PIL import Image

import mmdiff
from mmdiff.decoding.settings import Decoding
from mmdiff.errors import SettingError
from mmdiff.eval.options import bounds, check_way
from mmdiff.eval.runner import evaluate
from mmdiff.eval.tasks.base import make
from mmdiff.heads.base import HEADS
from mmdiff.heads.run import compose_canvas

PICTURE = Image.new("RGB", (40, 40), "red")


@pytest.fixture(scope="module")
def model(checkpoint):
    return mmdiff.load(checkpoint)


def asked(model, text="which?"):
    return HEADS.get("answer")().compose(model.processor, [PICTURE], text)


def test_one_token_is_exact(model):
    example = asked(model)
    example.template, example.holes = [model.processor.mask_id], [True]
    canvas = compose_canvas(model, model.processor, [example], Decoding(max_new_tokens=1))
    expected = -model.score(canvas, canvas.masked).double().log_softmax(-1)[0]
    found = bounds(model, asked(model), [[70], [80], [90]])
    assert [each.nll for each in found] == pytest.approx(expected[[70, 80, 90]].tolist())
    assert {each.samples for each in found} == {1}


def test_two_tokens_by_all_orders(model):
    """-log p(a, b) is bounded by the mean over both orders of filling two cells."""
    ids = [70, 80]
    mask = model.processor.mask_id

    def costs(holes):
        example = asked(model)
        template = [mask if hole else token for token, hole in zip(ids, holes, strict=True)]
        example.template, example.holes = template, holes
        canvas = compose_canvas(model, model.processor, [example], Decoding(max_new_tokens=2))
        logits = model.score(canvas, canvas.masked).detach().double().log_softmax(-1)
        wanted = [token for token, hole in zip(ids, holes, strict=True) if hole]
        return [-float(row[token]) for row, token in zip(logits, wanted, strict=True)]

    both, first, second = costs([True, True]), costs([True, False]), costs([False, True])
    expected = (both[0] + second[0] + both[1] + first[0]) / 2
    [found] = bounds(model, asked(model), [ids], samples=400)
    assert abs(found.nll - expected) < 4 * found.error + 1e-6


def test_options_of_one_length_share_their_masks(model):
    a, same, b = bounds(model, asked(model), [[70, 80, 90], [70, 80, 90], [71, 80, 90]], samples=3)
    assert a == same and a.nll != b.nll
    other = bounds(model, asked(model), [[70, 80, 90]], samples=3, seed=1)[0]
    assert a.nll != other.nll


def test_a_run_by_likelihood(model, tmp_path):
    PICTURE.save(tmp_path / "a.png")
    rows = [
        {
            "question": f"{n}?",
            "choices": ["a dog", "a black cat"],
            "answer": n % 2,
            "image": "a.png",
        }
        for n in range(4)
    ]
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    seen = {}
    for way in ("generate", "letters", "texts"):
        made = evaluate(model, "scienceqa", tmp_path, tmp_path / "out", by=way, samples=2)
        assert made["answers"]["by"] == way and made["questions"] == 4
        seen[way] = made
    assert seen["letters"]["not_parsed"] == seen["texts"]["not_parsed"] == 0
    assert 1 <= seen["letters"]["nfe"]["mean"] < seen["texts"]["nfe"]["mean"]
    assert len((tmp_path / "out" / "samples.jsonl").read_text().splitlines()) == 12
    again = evaluate(model, "scienceqa", tmp_path, tmp_path / "out", by="texts", samples=2)
    assert {**again, "time": 0} == {**seen["texts"], "time": 0}


def test_ways_that_a_benchmark_has_not():
    check_way(make("pope"), "texts")
    with pytest.raises(SettingError, match="pope knows generate, texts"):
        check_way(make("pope"), "letters")
    with pytest.raises(SettingError, match="vqav2 knows generate"):
        check_way(make("vqav2"), "texts")
    with pytest.raises(SettingError, match="scores no options"):
        check_way(make("pope"), "texts", torch.nn.Linear(1, 1))
