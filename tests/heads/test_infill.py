"""Infilling: given words stay, rows are independent, bad templates are told."""

import pytest

from mmdiff.errors import InputError
from mmdiff.heads.infill import parse_template
from tests.heads.helpers import key, picture


@pytest.mark.parametrize(
    "template",
    [
        "a [MASK:3] circle and [MASK]",
        "[MASK:2]",
        "A red [MASK] , typed <|mask|> stays.",
        "x[MASK]y",
    ],
)
def test_given_words_stay(model, template):
    processor = model.processor
    made = model.infill(template, picture())
    ids, holes = parse_template(processor, template)
    assert len(made.ids) == len(ids)
    for got, given, hole in zip(made.ids, ids, holes, strict=True):
        assert hole or got == given
        assert not hole or got != processor.mask_id
    assert made.nfe == sum(holes)
    assert made.ids[-1] == processor.end_id
    assert key(model.infill(template, [picture()])) == key(made)


def test_templates_of_different_length_are_independent(model):
    texts = ("a [MASK:2]", "[MASK] red [MASK:7] b", "the [MASK:2]", "[MASK:5]")
    inputs, seeds = [([picture()], text) for text in texts], [3, 4, 5, 6]
    for rule in ({"steps": 6, "block_length": 2}, {"steps": 3}, {"accept": "threshold"}):
        settings = {"temperature": 1.0, "trace": True, "max_new_tokens": 8, **rule}
        together = model.run("infill", inputs, seed=seeds, **settings)
        for each, seed, made in zip(inputs, seeds, together, strict=True):
            (alone,) = model.run("infill", [each], seed=seed, **settings)
            assert key(alone) == key(made)
            assert len(made.trace) == made.nfe
            assert {len(step["ids"]) for step in made.trace} == {len(made.ids)}


def test_the_spaces_around_a_hole(model):
    ids, holes = parse_template(model.processor, "a red [MASK] circle")
    given = [i for i, hole in zip(ids, holes, strict=True) if not hole]
    encode = model.processor.encode
    assert given == [*encode("a red"), *encode(" circle"), model.processor.end_id]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("", "empty"),
        ("no hole", "no hole"),
        ("[MASK:0]", "1 to 1024"),
        ("[MASK:5000]", "1 to 1024"),
        ("[MASK:900]", "shorten the text or lower"),
        (None, "must be text"),
    ],
)
def test_bad_templates(model, template, words):
    with pytest.raises(InputError, match=words):
        model.infill(template)
