"""`mmdiff answer` on a tiny folder of every family, with a tokenizer that has the published tokens:
the prompt, the answer, and the ids that none may hold."""

import json

import pytest
from PIL import Image
from safetensors.torch import save_file

import mmdiff
from mmdiff.checkpoints.base import FAMILIES
from mmdiff.cli.main import main
from tests.checkpoints.helpers import random_weights, tiny, write_config, write_tokenizer
from tests.checkpoints.published_configs import PUBLISHED

ROWS, USED, CODES = 352, 320, 16
LLADA = ["<|mdm_mask|>", "<|endoftext|>", "<|startoftext|>"]
LLADA += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
DREAM = ["<|mask|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SDAR = ["<|MASK|>", *DREAM[1:], "<|image_pad|>", "<|video_pad|>"]
PICTURE = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
LUMINA = ["<|mdm_mask|>", "<|endoftext|>"]
LUMINA += [f"<{end}{word}>" for word in ("system", "user", "answer") for end in ("", "/")]
TOKENS = {
    **dict.fromkeys(("llada", "lavida-llada", "llada-v", "rediff", "mmada"), LLADA),
    **dict.fromkeys(("dream", "lavida-dream"), DREAM),
    **dict.fromkeys(("sdar", "sdar-vl"), SDAR),
    "dimple": [*DREAM, *PICTURE],
    "lumina": LUMINA,
    "illada": ["<[MASK]>", "<|endoftext|>"],
}
# iLLaDA's prompt is whatever its folder's own chat template writes.
OWN = {"illada": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"}
START, END = "<|start_header_id|>", "<|end_header_id|>"
HEADERS = f"<|startoftext|>{START}user{END}\n\nwhy?<|eot_id|>{START}assistant{END}\n\n"
TURNS = "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = {
    **dict.fromkeys(("llada", "rediff"), HEADERS),
    "mmada": HEADERS.replace("\n\n", "\n"),
    **dict.fromkeys(("dream", "sdar", "sdar-vl"), TURNS),
    "dimple": f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{TURNS}",
    "lumina": "<user>why?</user><answer>",
    "illada": "user: why?\n",
}
QUICK = ["max_new_tokens=8", "steps=4", "--json"]


def roomy(config, **ids):
    """`config` with room for a byte tokenizer and long prompts."""
    given = {"vocab_size": ROWS, "mask_token_id": 300, "eos_token_id": 301, "pad_token_id": 301}
    given |= {"max_position_embeddings": 1024, "max_sequence_length": 1024, **ids}
    if "text_config" in config:
        return config | {"text_config": roomy(config["text_config"], **ids)}
    if "embedding_size" in config:
        given["embedding_size"] = ROWS
    if "codebook_size" in config:
        given |= {"llm_vocab_size": USED, "codebook_size": CODES, "new_vocab_size": ROWS}
    return config | given


@pytest.fixture(scope="module", params=TOKENS)
def folder(request, tmp_path_factory):
    named = dict(enumerate(TOKENS[request.param], start=300))
    ids = {token: i for i, token in named.items()}
    config = roomy(tiny(request.param))
    if request.param == "dimple":
        config["image_token_id"] = ids["<|image_pad|>"]
    if request.param == "sdar-vl":
        config["image_token_index"] = ids["<|image_pad|>"]
    path = write_config(tmp_path_factory.mktemp("answers") / "model", config)
    save_file(random_weights(config), path / "model.safetensors")
    write_tokenizer(path, USED, named, chat_template=OWN.get(request.param))
    return path


@pytest.fixture(scope="module")
def model(folder):
    return mmdiff.load(folder, device="cpu")


def ask(capsys, folder, *words):
    code = main(["answer", *map(str, words), "--model", str(folder), *QUICK])
    return code, capsys.readouterr()


def test_every_family_is_here():
    assert set(TOKENS) == set(PUBLISHED)


def test_answer(folder, model, tmp_path, capsys):
    code, made = ask(capsys, folder, "what is this?")
    row = json.loads(made.out)
    assert (code, row["file"]) == (0, None) and 1 <= row["nfe"] <= 8
    picture = tmp_path / "picture.png"
    Image.new("RGB", (60, 90), "teal").save(picture)
    code, made = ask(capsys, folder, picture, "what is this?")
    if model.vision is None:
        codes = FAMILIES.get(model.config.family).pictures  # read by a codec: test_looking.py
        words = "the codec that makes codes" if codes else "this model takes no pictures"
        assert code == 2 and words in made.err
        assert made.err.count("\n") == 1
        return
    row = json.loads(made.out)
    assert (code, row["file"]) == (0, str(picture)) and 1 <= row["nfe"] <= 8


def test_the_prompt(model):
    ids = model.processor.prompt_ids([{"role": "user", "content": "why?"}])
    text = model.processor.tokenizer.decode(ids)
    family = model.config.family
    if family in PROMPTS:
        assert text == PROMPTS[family]
    else:  # LLaVA's system message comes first
        turns = HEADERS.removeprefix("<|startoftext|>") if family != "lavida-dream" else TURNS
        assert text.endswith(turns) and "helpful language and vision assistant" in text


def test_unused_rows_are_never_written(model):
    """At a temperature where every row of the table is equally likely."""
    settings = {"temperature": 1e6, "max_new_tokens": 128, "steps": 32, "stop": "none"}
    made = model.chat([{"role": "user", "content": "why?"}], cache="none", **settings)
    forbidden = set(model.forbidden().tolist())
    codes = set(range(USED, USED + CODES)) if model.config.codes else set()
    assert {300, *range(USED, ROWS), *codes} <= forbidden
    assert not forbidden & set(made.ids) and len(set(made.ids)) > 30
