"""Scores of hand-made results, and the whole measurement on a handful of scenes."""

import functools

import pytest

import mmdiff
from mmdiff.data.worlds import tabletop_sets
from mmdiff.eval import built_in
from mmdiff.eval import tabletop as evaluation
from mmdiff.eval.built_in import share
from mmdiff.eval.tabletop import (
    Result,
    accuracy,
    answer_set,
    blind_guess,
    by_kind,
    caption_set,
    nfe_ratio,
    paired_interval,
    template,
)
from mmdiff.heads.run import Generation


def results(marks, kinds=None):
    """One result for each mark, 1 for a right answer."""
    kinds = kinds or ["count"] * len(marks)
    return [Result(k, bool(m), 3, 6, 0.1, "a", "b") for m, k in zip(marks, kinds, strict=True)]


@pytest.fixture(scope="module")
def model(checkpoint):
    return mmdiff.load(checkpoint)


@pytest.fixture
def _few_scenes(monkeypatch):
    """The first scenes of every set, without making the others."""
    monkeypatch.setattr(
        evaluation, "load_set", lambda name: tuple(tabletop_sets._item(name, i) for i in range(3))
    )


def test_accuracy_by_kind():
    made = results([1, 0, 1, 1], ["shape", "count", "shape", "count"])
    assert accuracy(made) == 0.75
    assert by_kind(made) == {"count": (0.5, 2), "shape": (1.0, 2)}
    assert list(by_kind(made)) == ["count", "shape"]
    assert accuracy([]) == 0
    assert by_kind([]) == {}


def test_calls_per_token_is_a_ratio_of_sums():
    made = [Result("", True, nfe, length, 0, "", "") for nfe, length in ((2, 8), (4, 4), (3, 18))]
    assert nfe_ratio(made) == pytest.approx(9 / 30)
    assert nfe_ratio([]) == 0


def test_the_paired_interval():
    change, low, high = paired_interval(results([1, 0, 0, 1]), results([1, 1, 1, 0]))
    assert change == pytest.approx(0.25)
    # Changes 0, 1, 1, -1: their variance is 11/12, over 4 rows.
    half = 1.96 * (11 / 12 / 4) ** 0.5
    assert (low, high) == pytest.approx((0.25 - half, 0.25 + half))
    assert paired_interval(results([1, 0]), results([1, 0])) == (0, 0, 0)
    assert paired_interval(results([0]), results([1])) == (1, 1, 1)
    with pytest.raises(ValueError, match="zip"):
        paired_interval(results([1]), results([1, 0]))


def test_a_share_with_its_half_width():
    figure = share("what", results([1] * 9 + [0]), 0.8)
    assert figure.value == "90.0% +- 18.6% of 10"
    assert (figure.wanted, figure.held) == (">= 80%", True)
    assert share("what", results([1, 0]), 0.8).held is False


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("what colour is the circle?", "what colour is the square?"),
        ("is the red circle large?", "is the blue star small?"),
        ("how many striped triangles are there?", "how many dotted circles are there."),
    ],
)
def test_a_template_leaves_the_attributes_open(one, other):
    assert template(one) == template(other)
    assert "*" in template(one)


def test_different_questions_have_different_templates():
    assert template("how many circles are there?") != template("is there a circle?")
    assert template("what is boxed in?") == "what is boxed in"


@pytest.mark.usefixtures("_few_scenes")
def test_answers_are_judged_question_by_question(model):
    heard = []
    made = answer_set(model, "vqa", limit=2, progress=heard.append, max_new_tokens=3)
    asked = [qa for item in evaluation.load_set("vqa")[:2] for qa in item.qas]
    assert heard == [2]
    assert [(r.kind, r.wanted) for r in made] == [(qa.kind, qa.answer) for qa in asked]
    assert all(1 <= r.nfe <= 3 and 1 <= r.length <= 3 and r.seconds > 0 for r in made)
    blind = answer_set(model, "vqa", limit=2, blind=True, max_new_tokens=3)
    assert [r.wanted for r in blind] == [r.wanted for r in made]


@pytest.mark.usefixtures("_few_scenes")
def test_captions_are_judged_whole(model):
    made = caption_set(model, limit=2, max_new_tokens=3)
    scenes = evaluation.load_set("caption")[:2]
    assert [r.kind for r in made] == [f"{len(item.scene.objects)} objects" for item in scenes]
    assert not any(r.correct for r in made)

    class Knowing:
        """Says the true captions."""

        def run(self, head, inputs, **_):
            answers = iter(scenes)
            return [Generation(next(answers).caption, 1, 0.1, [], 9) for _ in inputs]

    assert accuracy(caption_set(Knowing(), limit=2)) == 1


@pytest.mark.usefixtures("_few_scenes")
def test_the_measured_table(model, monkeypatch):
    few = functools.partial(blind_guess, fitted=60)
    monkeypatch.setattr(built_in, "blind_guess", few)
    heard = []
    figures = [
        *built_in.questions(model, 1, heard.append),
        *built_in.captions(model, 1, heard.append),
    ]
    assert sum(heard) == 5
    assert all(figure.what and figure.value for figure in figures)
    told = [figure.what for figure in figures if not figure.what.startswith("  ")]
    assert [what.split(",")[0] for what in told] == [
        "VQA exact match",
        "VQA on never-seen colour x shape pairs",
        "VQA",
        "VQA",
        "captions wholly true",
        "captions",
        "threshold decoding: NFE per answer token",
    ]
    assert all((figure.held is None) == (figure.wanted == "") for figure in figures)
