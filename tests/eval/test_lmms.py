"""The lmms-eval plug-in against lmms-eval's own registry and requests."""

import pytest
from PIL import Image

from mmdiff.errors import InputError, SettingError

lmms_eval = pytest.importorskip("lmms_eval.api.model")
from lmms_eval.api.instance import Instance, unwrap_generation_output  # noqa: E402
from lmms_eval.models.registry_v2 import ModelRegistryV2  # noqa: E402

from mmdiff.eval import lmms  # noqa: E402


@pytest.fixture(scope="module")
def chat(checkpoint):
    registry = ModelRegistryV2()
    registry.register_manifest(lmms.manifest())
    made = registry.get_model_class("mmdiff")
    arguments = f"pretrained={checkpoint},steps=2,most_cells=6"
    return made.create_from_arg_string(arguments, {"batch_size": 2, "device": "cpu"})


def requests(chat, docs, asked):
    """Chat requests as lmms-eval makes them."""
    chat.task_dict = {"t": {"test": docs}}

    def messages(doc):
        shown = [{"type": "image", "url": doc["picture"]}] if doc["picture"] else []
        return [{"role": "user", "content": [*shown, {"type": "text", "text": doc["text"]}]}]

    about = {"task": "t", "doc_id": 0, "repeats": 1}
    return [
        Instance("generate_until", ("", messages, each, number, "t", "test"), number, about)
        for number, each in enumerate(asked)
    ]


def test_answers_come_in_order_whatever_is_batched(chat):
    red, blue = (Image.new("RGB", (40, 40), colour) for colour in ("red", "blue"))
    docs = [{"picture": (red, blue, None)[n % 3], "text": f"number {n}?"} for n in range(5)]
    asked = [{"max_new_tokens": (4, 1024)[n % 2], "temperature": 0} for n in range(5)]
    made = chat.generate_until(requests(chat, docs, asked))
    for n, result in enumerate(made):
        text, counts = unwrap_generation_output(result)
        pictures = [docs[n]["picture"]] if docs[n]["picture"] else []
        parts = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": docs[n]["text"]}]
        cells = (4, 6)[n % 2]
        alone = chat.model.chat(
            [{"role": "user", "content": parts}], pictures, max_new_tokens=cells, steps=2
        )
        assert (text, counts.output_tokens) == (alone.text, alone.length)


def test_settings_of_the_model_win(chat):
    assert chat.settings({"max_new_tokens": 99, "do_sample": True, "temperature": 0.5}) == {
        "max_new_tokens": 6,
        "temperature": 0.5,
        "steps": 2,
    }
    assert chat.settings({"temperature": 0.5, "num_beams": 3}) == {"steps": 2}


def test_what_it_cannot_do(chat, checkpoint):
    with pytest.raises(InputError, match="video"):
        lmms.conversation([{"role": "user", "content": [{"type": "video", "url": "x"}]}])
    with pytest.raises(SettingError, match="stepps"):
        lmms.Chat(checkpoint, stepps=2)
    with pytest.raises(NotImplementedError):
        chat.loglikelihood([])
    assert lmms.until("a b\nc", ["\n", "b"]) == "a "
