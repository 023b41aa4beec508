"""From pictures and words to answers, alone and in batches, and what is refused."""

import pytest
import torch

from mmdiff.errors import ImageError, InputError, SettingError
from tests.heads.helpers import key, picture

COLOURS = ("red", "teal", "gold", "navy", "olive")
SAMPLED = {"temperature": 1.0, "max_new_tokens": 3, "steps": 2, "stop": "none"}


def test_a_list_in_is_a_list_out(model):
    alone = model.caption(picture())
    assert str(alone) == alone.text
    listed = model.caption([picture(), picture("teal")])
    assert [key(g) for g in listed] == [key(alone), key(model.caption(picture("teal")))]
    assert [key(g) for g in model.caption((picture(),))] == [key(alone)]
    assert model.caption([]) == []
    assert model.answer(picture(), []) == []


def test_questions_about_the_same_pictures(model):
    pictures, asked = [picture(), picture("teal")], ["how many?", "what is left of it?"]
    listed = model.answer(pictures, asked)
    assert [key(g) for g in listed] == [key(model.answer(pictures, q)) for q in asked]
    assert key(listed[0]) != key(listed[1])
    swapped = model.answer(pictures[::-1], asked)
    assert [key(g) for g in listed] != [key(g) for g in swapped]


def test_a_caption_takes_another_request(model):
    plain, other = model.caption(picture()), model.caption(picture(), "what do you see?")
    assert key(plain) == key(model.caption(picture(), "describe the picture."))
    assert key(plain) != key(other)


def test_the_figures_of_an_answer(model):
    made = model.answer(picture(), "how many?", max_new_tokens=5, stop="none", steps=2)
    assert (made.nfe, len(made.ids)) == (2, 5)
    assert made.text == model.processor.decode(made.ids)
    ended = model.processor.end_id in made.ids
    assert made.length == (made.ids.index(model.processor.end_id) + 1 if ended else 5)
    assert made.tokens_per_forward == made.length / 2
    assert made.seconds > 0
    assert made.trace is None


def test_the_trace_leads_to_the_answer(model):
    inputs = [([picture()], "how many circles?"), ([], "a")]
    for made in model.run("answer", inputs, trace=True, max_new_tokens=5, steps=3):
        assert len(made.trace) == made.nfe == 3
        masked = [True] * 5
        for step in made.trace:
            assert set(step) == {"ids", "masked", "accepted", "probability"}
            assert {len(cells) for cells in step.values()} == {5}
            for cell, accepted in enumerate(step["accepted"]):
                assert not accepted or (masked[cell] and not step["masked"][cell])
            masked = step["masked"]
        assert not any(masked)
        assert made.trace[-1]["ids"] == made.ids


# Batches


def test_a_long_list_equals_its_rows_alone(model):
    inputs = [([picture(COLOURS[i % 5])], f"{'how many ' * (i % 3)}{i}?") for i in range(35)]
    seeds, heard = list(range(100, 135)), []
    made = model.run("answer", inputs, seed=seeds, progress=heard.append, **SAMPLED)
    assert heard == [32, 3]
    assert len({tuple(g.ids) for g in made}) > 20
    for i in (0, 7, 31, 32, 34):
        (alone,) = model.run("answer", inputs[i : i + 1], seed=seeds[i], **SAMPLED)
        assert key(alone) == key(made[i])
    cut = model.run("answer", inputs[:7], seed=seeds[:7], batch_size=3, **SAMPLED)
    assert [key(g) for g in cut] == [key(g) for g in made[:7]]


@pytest.mark.parametrize("seeds", [[], [1], [1, 2, 3]])
def test_seeds_are_counted_before_anything_is_read(model, seeds):
    inputs = [(["missing.png"], "a"), (["missing.png"], "b")]
    with pytest.raises(SettingError, match=f"seed lists {len(seeds)} seeds for 2 rows"):
        model.run("answer", inputs, seed=seeds, batch_size=1)


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("cache", ["none", "prefix"])
def test_rows_with_and_without_pictures_share_a_batch(model, apart, cache):
    model.config.picture_apart = apart
    inputs = [([picture()], "how many?"), ([], "a"), ([picture("teal"), picture()], "is it?")]
    together = model.run("answer", inputs, cache=cache, **SAMPLED)
    for each, made in zip(inputs, together, strict=True):
        (alone,) = model.run("answer", [each], cache=cache, **SAMPLED)
        assert key(alone) == key(made)


# Refusals


def test_urls_are_not_read_unless_asked(model):
    url = "http://127.0.0.1:9/a.png"
    for ask in (model.caption, lambda u: model.answer(u, "a"), lambda u: model.infill("[MASK]", u)):
        with pytest.raises(ImageError, match="allow_urls=True"):
            ask(url)
    with pytest.raises(ImageError, match="cannot be loaded"):
        model.caption(url, allow_urls=True)


@pytest.mark.parametrize("question", ["", "  ", None, 3])
def test_a_question_must_be_text(model, question):
    with pytest.raises(InputError, match="question"):
        model.answer(picture(), question)


def test_what_does_not_fit_is_refused(model, monkeypatch):
    with pytest.raises(InputError, match="but this model holds 256"):
        model.answer(picture(), "a", max_new_tokens=250)
    with pytest.raises(SettingError, match="Did you mean steps"):
        model.caption(picture(), stepz=3)
    with pytest.raises(SettingError, match="Did you mean caption"):
        model.run("captoin", [])
    monkeypatch.setattr(model, "processor", None)
    with pytest.raises(InputError, match="no processor files"):
        model.caption(picture())
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=2).sequences.shape == (1, 4)
