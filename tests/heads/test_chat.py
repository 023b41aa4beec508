"""Chat: pictures in or beside the messages, the history, bad messages."""

import pytest

from mmdiff.errors import InputError
from tests.heads.helpers import key, picture


def test_chat_with_pictures_in_the_messages_or_beside_them(model):
    part, words = {"type": "image"}, {"type": "text", "text": "what is it?"}
    beside = [{"role": "user", "content": [part, words]}]
    inside = [{"role": "user", "content": [{**part, "image": picture()}, words]}]
    made = model.chat(beside, picture())
    assert key(model.chat(beside, [picture()])) == key(made)
    assert key(model.chat(inside)) == key(made)
    assert inside[0]["content"][0]["image"].size == (40, 32)  # the caller's list is left alone
    assert key(model.chat(beside, picture("teal"))) != key(made)


def test_the_history_matters_and_may_hold_an_empty_answer(model):
    def chat(reply):
        return model.chat(
            [
                {"role": "system", "content": ""},
                {"role": "user", "content": "is it red?"},
                {"role": "assistant", "content": reply},
                {"role": "user", "content": "sure?"},
            ]
        )

    assert key(chat("")) == key(chat([]))
    assert key(chat("yes")) != key(chat("no"))


def test_a_picture_alone_is_a_turn(model):
    messages = [{"role": "user", "content": [{"type": "image"}]}]
    assert model.chat(messages, picture()).nfe > 0


USER = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("messages", "images", "words"),
    [
        ([], (), "at least one entry"),
        ("hello", (), "at least one entry"),
        ([USER, {"role": "assistant", "content": "b"}], (), "last message must be the user's"),
        ([{"role": "robot", "content": "a"}], (), "message 0: the role must be one of"),
        (["a"], (), "message 0: the role"),
        ([USER, {"role": "user"}], (), "message 1: content must be text or a list"),
        ([{"role": "user", "content": " "}], (), "text of message 0 is empty"),
        ([{"role": "user", "content": []}], (), "text of message 0 is empty"),
        ([{**USER, "content": ""}, USER], (), "text of message 0 is empty"),
        ([{"role": "user", "content": [{"type": "text", "text": ""}]}], (), "is empty"),
        ([{"role": "user", "content": [{"type": "sound"}]}], (), "must be an image or text"),
        ([{"role": "user", "content": [{"type": "text"}]}], (), "must be an image or text"),
        ([USER], (picture(),), "0 image parts but 1 pictures"),
        ([{"role": "user", "content": [{"type": "image"}]}], (), "1 image parts but 0 pictures"),
    ],
)
def test_bad_messages(model, messages, images, words):
    with pytest.raises(InputError, match=words):
        model.chat(messages, images)
