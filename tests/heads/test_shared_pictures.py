"""A picture that several rows of a batch look at is encoded once, with the same answers."""

import pytest
from PIL import Image

import mmdiff
from mmdiff.decoding.settings import Decoding
from mmdiff.heads.base import Example, user_message
from mmdiff.heads.run import compose_canvas


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.effect_noise((48, 40), 80).convert("RGB").save(path)
    return str(path)


def test_one_picture_many_questions(checkpoint, picture):
    model = mmdiff.load(checkpoint)
    questions = ["how many?", "is there a red circle?", "what colour is the star?"]
    together = model.answer(picture, questions)
    assert [g.ids for g in together] == [model.answer(picture, q).ids for q in questions]


def test_encoded_once(checkpoint, picture):
    model = mmdiff.load(checkpoint)
    a, b = Image.open(picture).convert("RGB"), Image.open(picture).convert("RGB")
    examples = [Example([user_message("x", 1)], [image]) for image in (a, b, a)]
    features = compose_canvas(model, model.processor, examples, Decoding(max_new_tokens=4)).features
    assert features.pixel_values.shape[0] == 2
    tokens = model.image_tokens
    assert features.source.view(3, tokens)[2].tolist() == list(range(tokens))
