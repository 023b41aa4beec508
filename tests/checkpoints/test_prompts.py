"""Published folders with a tokenizer: prompts, ends, forbidden ids, and answers from pictures."""

import json
import shutil

import pytest
import torch
from PIL import Image

import mmdiff
from mmdiff.checkpoints.base import FAMILIES
from mmdiff.cli.main import main
from mmdiff.errors import CheckpointError
from mmdiff.processing import PLACEHOLDER
from tests.checkpoints.helpers import write_tokenizer
from tests.walk.core import ROOT

GOLDEN = ROOT / "tests" / "golden"
INDEX = json.loads((GOLDEN / "index.json").read_text())["entries"]
ENTRIES = {e["layout"]: e for e in reversed(INDEX) if "layout" in e}  # the first of each
CHECKPOINTS = [e for e in INDEX if e["kind"] == "checkpoint"]
LLADA = {
    "bos": "<|startoftext|>",
    "eos": "<|endoftext|>",
    "mask": "<|mdm_mask|>",
    "start_header": "<|start_header_id|>",
    "end_header": "<|end_header_id|>",
    "eot": "<|eot_id|>",
}
DREAM = {
    "eos": "<|endoftext|>",
    "mask": "<|mask|>",
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
}
LAYOUTS = {
    "llada": LLADA,
    "dream": DREAM,
    "lavida_llada": LLADA,
    "lavida_dream": DREAM,
    "llada_v": LLADA,
}


def folder_with_tokenizer(layout, target):
    """A golden checkpoint's folder with a byte tokenizer that has the published special tokens."""
    entry = ENTRIES[layout]
    target.mkdir()
    for role in ("config", "weights"):
        shutil.copy(GOLDEN / entry["files"][role], target)
    rows = json.loads((target / "config.json").read_text())["vocab_size"]
    named = {entry["token_ids"][role]: token for role, token in LAYOUTS[layout].items()}
    write_tokenizer(target, rows - 2, named)
    return target, entry["token_ids"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_answers_from_a_folder_with_a_tokenizer(layout, tmp_path):
    folder, ids = folder_with_tokenizer(layout, tmp_path / "model")
    model = mmdiff.load(folder)
    assert model.config.mask_token_id == ids["mask"]
    messages = [{"role": "user", "content": "What is this?"}]
    settings = {"max_new_tokens": 4, "steps": 2}
    if model.vision is None:
        assert model.chat(messages, **settings).nfe <= 2
        return
    picture = Image.new("RGB", (40, 30), "red")
    made = model.answer(picture, "What is this?", **settings)
    assert made.nfe <= 2
    assert not {ids["mask"], *model.config.forbidden_ids} & set(made.ids[: made.length])
    messages[0]["content"] = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    prompt = model.processor.prompt_ids(messages)
    assert prompt.count(PLACEHOLDER) == 1
    after = prompt[prompt.index(PLACEHOLDER) + 1 :]
    assert model.processor.decode(after[: len("\nWhat is this?")]) == "What is this?"


def test_two_pictures_of_different_shape_in_one_batch(tmp_path):
    folder, _ = folder_with_tokenizer("lavida_llada", tmp_path / "model")
    model = mmdiff.load(folder)
    pictures = [Image.new("RGB", (40, 30), "red"), Image.new("RGB", (20, 70), "blue")]
    settings = {"max_new_tokens": 4, "steps": 2}
    both = model.caption(pictures, **settings)
    alone = [model.caption(picture, **settings) for picture in pictures]
    assert [g.ids for g in both] == [g.ids for g in alone]


def test_llada_prompt_is_the_published_template(tmp_path):
    folder, _ = folder_with_tokenizer("llada", tmp_path / "model")
    processor = mmdiff.load(folder).processor
    ids = processor.prompt_ids([{"role": "user", "content": " hi "}])
    text = processor.tokenizer.decode(ids)
    assert text == (
        "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_a_typed_mask_token_is_plain_text(tmp_path):
    folder, ids = folder_with_tokenizer("dream", tmp_path / "model")
    processor = mmdiff.load(folder).processor
    assert ids["mask"] not in processor.prompt_ids([{"role": "user", "content": "a <|mask|> b"}])


def test_unused_rows_are_never_generated(tmp_path):
    folder, _ = folder_with_tokenizer("llada", tmp_path / "model")
    model = mmdiff.load(folder)
    rows = model.rows
    assert {rows - 1, rows - 2} <= set(model.forbidden().tolist())


def test_a_tokenizer_published_as_code(tmp_path):
    """Dream's and Dimple's folders hold vocab.json and merges.txt, and Python that is never run."""
    folder, ids = folder_with_tokenizer("dream", tmp_path / "model")
    said = json.loads((folder / "tokenizer.json").read_text())
    words = {i: word for word, i in said["model"]["vocab"].items()}
    first = min(ids[role] for role in DREAM)
    pairs = {300: ("h", "i"), 301: ("Ġ", "hi")}
    kept = {i: "".join(pairs.get(i, words[i])) for i in range(first)}
    vocabulary = {word: i for i, word in kept.items()}
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, pairs.values())))
    named = {ids[role]: token for role, token in DREAM.items()}
    added = {
        str(i): {"content": named.get(i, words[i]), "special": i in named, "normalized": False}
        for i in range(first, ids["mask"] + 1)
    }
    config = {"tokenizer_class": "DreamTokenizer", "added_tokens_decoder": added}
    config["auto_map"] = {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}
    config["eos_token"] = config["pad_token"] = "<|endoftext|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "tokenization_dream.py").write_text("raise SystemExit")
    processor = mmdiff.load(folder, device="cpu").processor
    assert processor.mask_id == ids["mask"]
    assert processor.encode("hi hi") == [300, 301]
    prompt = processor.prompt_ids([{"role": "user", "content": "hi"}])
    assert prompt[0] == ids["im_start"] and ids["im_end"] in prompt
    assert processor.decode(processor.encode("hi hi, é")) == "hi hi, é"
    config["tokenizer_class"] = "OtherTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"no tokenizer.json, and merges.txt is of an unknown"
    ):
        mmdiff.load(folder, device="cpu")


def test_a_tokenizer_without_the_mask_token_is_refused(tmp_path):
    folder, _ = folder_with_tokenizer("llada", tmp_path / "model")
    text = (folder / "tokenizer.json").read_text().replace("<|mdm_mask|>", "<|other|>")
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"lacks the token '<.mdm_mask.>'"):
        mmdiff.load(folder)


@pytest.mark.parametrize("entry", CHECKPOINTS, ids=lambda entry: entry["id"])
def test_info_and_generate_on_every_golden_folder(entry, capsys):
    folder = (GOLDEN / entry["files"]["config"]).parent
    assert main(["info", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    parameters, stored = facts["parameters"]["total"], facts["stored"]
    # The files also hold what is never read, and their headers.
    assert 0 < 4 * parameters <= stored["bytes"] < 4 * parameters + 2e5
    assert (facts["memory_bf16_bytes"], stored["dtypes"]) == (2 * parameters, ["F32"])
    assert facts["family"] in FAMILIES and facts["decoding"]["max_new_tokens"]
    assert (facts["attention_layout"], facts["prompt_cache_exact"]) == ("full", False)
    assert main(["info", str(folder)]) == 0
    model = mmdiff.load(folder, device="cpu")
    model.config.mask_token_id = entry["token_ids"]["mask"]
    made = model.generate(torch.tensor([[3, 5, 7]]), max_new_tokens=4, steps=2)
    assert made.sequences.shape == (1, 7) and int(made.nfe[0]) <= 2
