"""Autoregressive folders as starts of diffusion training: the same numbers, and ready to train."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import mmdiff
from mmdiff.checkpoints import convert as module
from mmdiff.checkpoints.autoregressive import DECODERS
from mmdiff.checkpoints.start import EMBEDDING, HEAD, Start, to_diffusion
from mmdiff.errors import CheckpointError, SettingError
from mmdiff.raw_ids import canvas_from_ids
from tests.checkpoints.helpers import TINY_TOWER, llama, pictures, write_config
from tests.checkpoints.starts import (
    END,
    IMAGE,
    NAMED,
    PARTS_TEMPLATE,
    SIZES,
    TEMPLATE,
    write_decoder,
    write_llava,
    write_words,
)

ROWS = 259  # of the sources' tables, all in use
IDS = torch.tensor([[7, 40, 200, 9, 13, 77, 5, 41]])
QUESTION = [{"role": "user", "content": "why?"}]


def read_json(path):
    return json.loads(path.read_text())


def ids_of(processor, text):
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def stored(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture
def source(tmp_path):
    write_decoder(tmp_path / "source")
    return tmp_path / "source"


def refused(source, target, words, **how):
    before = sorted(target.parent.iterdir())
    with pytest.raises(CheckpointError, match=words) as caught:
        to_diffusion(source, target, Start(**how))
    assert "\n" not in str(caught.value)
    assert sorted(target.parent.iterdir()) == before


@pytest.mark.parametrize("kind", DECODERS)
@torch.inference_mode()
def test_under_causal_attention_it_is_the_source_and_else_it_sees_all(tmp_path, kind):
    theirs = write_decoder(tmp_path / "source", kind)
    to_diffusion(tmp_path / "source", tmp_path / "ours")
    model = mmdiff.load(tmp_path / "ours", device="cpu")
    expected = theirs(IDS).logits[:, :-1]
    got = model(input_ids=IDS, attention_layout="causal").logits[:, 1:, :ROWS]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    other = IDS.clone()
    other[:, -1] = 99
    one, two = model(input_ids=IDS).logits, model(input_ids=other).logits
    assert float((one[:, 1] - two[:, 1]).abs().max()) > 1e-4
    # Padding brings a mask, without which the network finds its own way to see everything.
    padded = torch.cat([torch.full((1, 3), 5), IDS], 1)
    valid = torch.arange(11)[None] >= 3
    behind = model(input_ids=padded, attention_mask=valid).logits[:, 4:]
    torch.testing.assert_close(behind, one[:, 1:], atol=1e-5, rtol=1e-5)


def test_tensors_stay_and_new_rows_are_the_mean(tmp_path):
    theirs = write_decoder(tmp_path / "source").to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "source")
    made = to_diffusion(tmp_path / "source", tmp_path / "ours")
    before, after = stored(tmp_path / "source"), stored(tmp_path / "ours")
    names = {key: key.replace("model.", "backbone.", 1) for key in before}
    assert after.keys() == set(names.values())
    for theirs, ours in names.items():
        old, new = before[theirs], after[ours]
        assert old.dtype == new.dtype == torch.bfloat16
        rows = len(old)
        assert torch.equal(new[:rows].view(torch.uint8), old.view(torch.uint8))
        if ours not in (EMBEDDING, HEAD):
            assert old.shape == new.shape
            continue
        assert len(new) == ROWS + 1 == made.mask_token_id + 1
        mean = sum(old.double()) / ROWS
        assert torch.equal(new[ROWS], mean.to(torch.bfloat16))


def test_a_spare_row_becomes_the_mask_token(tmp_path):
    write_decoder(tmp_path / "source", "qwen2", vocab_size=272)
    made = to_diffusion(tmp_path / "source", tmp_path / "ours")
    assert made.mask_token_id == ROWS
    before, after = stored(tmp_path / "source"), stored(tmp_path / "ours")
    old, new = before["model.embed_tokens.weight"], after[EMBEDDING]
    others = torch.arange(272) != ROWS
    assert torch.equal(new[others], old[others])
    assert torch.equal(new[ROWS], old[:ROWS].double().mean(0).float())
    model = mmdiff.load(tmp_path / "ours", device="cpu")
    assert (model.rows, model.config.vocab_used) == (272, ROWS + 1)
    assert ROWS in model.forbidden().tolist()


@torch.inference_mode()
@pytest.mark.parametrize("copied", [False, True])
def test_a_tied_head(tmp_path, copied):
    source, ours = tmp_path / "source", tmp_path / "ours"
    theirs = write_decoder(source, tie_word_embeddings=True)
    tensors = stored(source)
    assert "lm_head.weight" not in tensors
    if copied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, source / "model.safetensors")
    made = to_diffusion(source, ours)
    assert HEAD not in stored(ours)
    assert made.unused == copied
    model = mmdiff.load(ours, device="cpu")
    got = model(input_ids=IDS, attention_layout="causal").logits[:, 1:, :ROWS]
    torch.testing.assert_close(got, theirs(IDS).logits[:, :-1], atol=1e-5, rtol=1e-5)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, source / "model.safetensors")
    refused(source, tmp_path / "other", "holds a head of its own")


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, ("full", True)),
        ({"layout": "prefix"}, ("prefix", True)),
        ({"layout": "prefix", "shift": False}, ("prefix", False)),
        ({"layout": "block_causal"}, ("block", False)),
        ({"layout": "block_causal", "shift": True, "block_length": 8}, ("block", True)),
    ],
)
def test_layouts_and_shift(source, tmp_path, how, expected):
    made = to_diffusion(source, tmp_path / "ours", Start(**how))
    assert (made.attention_layout, made.shift) == expected
    config = read_json(tmp_path / "ours" / "config.json")
    assert (config["attention_layout"], config["shift"]) == expected
    blocks = {"block_length": how.get("block_length", 32)} if expected[0] == "block" else {}
    assert config["decoding"] == {"max_new_tokens": 128, **blocks}
    model = mmdiff.load(tmp_path / "ours", device="cpu")
    answer = model.answer(None, "why?", max_new_tokens=4)
    assert answer.nfe > 0


def test_settings_that_cannot_be():
    with pytest.raises(SettingError, match="Did you mean block_causal"):
        Start(layout="block_casual")
    with pytest.raises(SettingError, match="goes with layout block_causal"):
        Start(block_length=4)
    with pytest.raises(SettingError, match="at least 1"):
        Start(layout="block_causal", block_length=0)


def test_the_mask_token(source, tmp_path):
    made = to_diffusion(source, tmp_path / "one", Start(mask_token="[MASK]"))
    assert (made.mask_token, made.mask_token_id) == ("[MASK]", ROWS)
    write_words(source, mask_token="<image>")
    made = to_diffusion(source, tmp_path / "two")
    assert (made.mask_token, made.mask_token_id) == ("<image>", IMAGE)
    assert "its rows stay" in made.notes[0]
    assert torch.equal(
        stored(tmp_path / "two")[EMBEDDING], stored(source)["model.embed_tokens.weight"]
    )
    processor = mmdiff.load(tmp_path / "two", device="cpu").processor
    assert processor.mask_id == processor.tokenizer.mask_token_id == IMAGE
    refused(source, tmp_path / "three", "'a' is a word of the vocabulary", mask_token="a")


def test_tokenizer_and_template_come_along(source, tmp_path):
    (source / "LICENSE").write_text("free")
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [IMAGE, END]}))
    (source / "modeling_x.py").write_text("raise SystemExit")
    code = {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}
    write_config(source, read_json(source / "config.json") | code)
    made = to_diffusion(source, tmp_path / "ours")
    assert made.notes == []
    kept = {path.name for path in (tmp_path / "ours").iterdir()}
    assert {"LICENSE", "config.json", "model.safetensors", "tokenizer.json"} <= kept
    assert "modeling_x.py" not in kept
    processor = mmdiff.load(tmp_path / "ours", device="cpu").processor
    assert processor.tokenizer.chat_template == TEMPLATE
    assert processor.end_ids == (END, IMAGE)
    assert processor.prompt_ids(QUESTION) == ids_of(
        processor, "<|begin|>user: why?<|begin|>assistant: "
    )
    assert processor.encode("<|mask|>") != [processor.mask_id]  # typed, it is plain text


def test_a_base_model_gets_a_plain_template(source, tmp_path):
    write_words(source, None)
    (source / "chat_template.jinja").unlink(missing_ok=True)
    made = to_diffusion(source, tmp_path / "ours")
    assert made.notes == ["there is no chat template; a plain one was written"]
    processor = mmdiff.load(tmp_path / "ours", device="cpu").processor
    plain = "### User:\nwhy?\n\n### Assistant:\n"
    assert processor.prompt_ids(QUESTION) == ids_of(processor, plain)


def test_shards_of_tensors(source, tmp_path):
    made = to_diffusion(source, tmp_path / "ours", shard_gb=2e-5)
    assert len(made.files) > 2
    whole = to_diffusion(source, tmp_path / "whole")
    assert (made.tensors, made.bytes) == (whole.tensors, whole.bytes)
    one, other = (mmdiff.load(tmp_path / n, device="cpu").state_dict() for n in ("ours", "whole"))
    assert all(torch.equal(one[key], other[key]) for key in other)


def test_a_window_is_noted(tmp_path):
    write_decoder(tmp_path / "source", "mistral", sliding_window=4)
    made = to_diffusion(tmp_path / "source", tmp_path / "ours")
    assert made.notes == ["cells saw the 4 before them; now they see all"]
    assert read_json(tmp_path / "ours" / "config.json")["text_config"]["sliding_window"] is None


# Pictures


@pytest.mark.parametrize(
    ("kind", "tower"),
    [
        ("llava", "clip"),
        ("llava", "siglip"),
        ("llava_next", "clip"),
        ("llava_onevision", "siglip"),
    ],
)
@torch.inference_mode()
def test_llava_keeps_its_numbers(tmp_path, kind, tower):
    theirs = write_llava(tmp_path / "source", kind, tower)
    to_diffusion(tmp_path / "source", tmp_path / "ours", Start(layout="prefix"))
    model = mmdiff.load(tmp_path / "ours", device="cpu")
    assert model.config.picture_apart
    model.config.picture_apart = False
    picture = Image.effect_noise((70, 45), 60).convert("RGB")
    ids = torch.tensor([[7, -200, 9, 13]])
    canvas = canvas_from_ids(model, ids, None, [picture])
    expanded = canvas.ids.clone()
    assert int((expanded == IMAGE).sum()) == model.cells_of(picture.size)
    pixels = canvas.features.pixel_values
    sizes = {} if kind == "llava" else {"image_sizes": torch.tensor([[45, 70]])}
    tiles = pixels if kind == "llava" else pixels[None]
    expected = theirs(input_ids=expanded, pixel_values=tiles, **sizes).logits[:, :-1]
    got = model(input_ids=ids, pixel_values=[picture], attention_layout="causal").logits[:, 1:]
    torch.testing.assert_close(got[..., :ROWS], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_llavas_prompt_and_pixels(tmp_path, kind):
    from transformers import CLIPImageProcessor

    write_llava(tmp_path / "source", kind)
    to_diffusion(tmp_path / "source", tmp_path / "ours")
    processor = mmdiff.load(tmp_path / "ours", device="cpu").processor
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
    ]
    tokenizer = processor.tokenizer
    expected = tokenizer.apply_chat_template(
        messages, chat_template=PARTS_TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    assert expected == "USER: <image>\nwhat? ASSISTANT:"
    assert processor.prompt_ids(messages) == ids_of(processor, expected)
    picture = Image.effect_noise((28, 28), 60).convert("RGB")
    theirs = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=28)
    pixels = theirs(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(processor.read([picture])[0][:1], pixels, atol=1e-5, rtol=1e-5)


def original(folder, **over):
    """LLaVA's own layout with random weights; returns them."""
    config = {k: v for k, v in SIZES.items() if v is not None}
    config |= {
        "model_type": "llava_llama",
        "vocab_size": ROWS,
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "mm_projector_type": "mlp2x_gelu",
        "image_aspect_ratio": "pad",
        "mm_patch_merge_type": "flat",
        "vision_config": TINY_TOWER,
        **over,
    }
    generator = torch.Generator().manual_seed(0)
    shapes = llama(config, biases=False) | pictures(config)
    del shapes["model.image_newline"]
    tensors = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    save_file(tensors, write_config(folder, config) / "model.safetensors")
    write_words(folder)
    return tensors


def test_llavas_own_layout(tmp_path):
    tensors = original(tmp_path / "source")
    made = to_diffusion(tmp_path / "source", tmp_path / "ours")
    after = stored(tmp_path / "ours")
    kept = [key for key in tensors if ".post_layernorm." not in key]
    assert len(after) == len(kept) == len(tensors) - made.unused
    projector = tensors["model.mm_projector.0.weight"]
    assert torch.equal(after["projector.layers.0.weight"], projector)
    model = mmdiff.load(tmp_path / "ours", device="cpu")
    assert model.answer(Image.new("RGB", (30, 20), "red"), "what?", max_new_tokens=3).nfe > 0


def test_llavas_own_prompt(tmp_path):
    original(tmp_path / "source")
    write_words(tmp_path / "source", None)
    (tmp_path / "source" / "chat_template.jinja").unlink(missing_ok=True)
    to_diffusion(tmp_path / "source", tmp_path / "ours")
    processor = mmdiff.load(tmp_path / "ours", device="cpu").processor
    messages = [*QUESTION, {"role": "assistant", "content": "so"}, *QUESTION]
    text = processor.tokenizer.decode(processor.prompt_ids(messages))
    assert text.endswith("questions. USER: why? ASSISTANT: so<|endoftext|>USER: why? ASSISTANT:")


# What is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is no autoregressive model .*llama, mistral"),
        ({"model_type": "llada"}, "'llada' is no autoregressive model"),
        ({"quantization_config": {"bits": 4}}, "the weights are quantised"),
        ({"vocab_size": 64}, "wrong shape"),
        ({"hidden_size": "wide"}, "cannot be used|describes no model"),
    ],
)
def test_configs_that_cannot_be_used(source, tmp_path, change, words):
    write_config(source, read_json(source / "config.json") | change)
    refused(source, tmp_path / "ours", words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vision_feature_layer": [-2, -1]}, "one is"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy='full'"),
        ({"vision_config": {"model_type": "vit"}}, "the tower 'vit' is not one of"),
        ({"image_token_index": 300}, "no token 300"),
    ],
)
def test_llavas_that_cannot_be_used(tmp_path, change, words):
    write_llava(tmp_path / "source")
    write_config(tmp_path / "source", read_json(tmp_path / "source" / "config.json") | change)
    refused(tmp_path / "source", tmp_path / "ours", words)


def test_without_a_tokenizer(source, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    refused(source, tmp_path / "ours", "the processor files cannot be read")


def test_a_template_that_shows_nothing(source, tmp_path):
    write_words(source, "{{ bos_token }}")
    refused(source, tmp_path / "ours", "does not show what a user says")


def test_a_target_that_exists(source, tmp_path):
    (tmp_path / "ours").mkdir()
    refused(source, tmp_path / "ours", "exists already")


def test_a_disk_that_is_full(source, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save", full)
    refused(source, tmp_path / "ours", "No space left")


def test_loading_the_source_says_what_to_do(source):
    with pytest.raises(CheckpointError, match=r"a llama predicts the next token alone.*to-diff"):
        mmdiff.load(source)


def test_there_is_no_way_back(source, tmp_path):
    to_diffusion(source, tmp_path / "ours")
    with pytest.raises(CheckpointError, match="of no published family"):
        module.convert(tmp_path / "ours", tmp_path / "back")


def test_named_tokens_are_what_the_tests_think():
    assert sorted(NAMED) == list(range(256, ROWS))
