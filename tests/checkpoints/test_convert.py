"""Published folder -> ours -> published: the same bytes under the same names."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import mmdiff
from mmdiff.checkpoints import convert as module
from mmdiff.checkpoints.convert import convert, shard_numbers
from mmdiff.errors import CheckpointError
from tests.checkpoints.helpers import random_weights, tiny, write, write_config, write_shards
from tests.checkpoints.published_configs import PUBLISHED

KEY = "model.transformer.blocks.0.q_proj.weight"


def stored(folder):
    """All tensors of a folder."""
    made = {}
    for path in folder.glob("*.safetensors"):
        made |= load_file(path)
    return made


def same_bytes(left, right):
    return left.dtype == right.dtype and torch.equal(
        left.view(torch.uint8).flatten(), right.view(torch.uint8).flatten()
    )


def read_json(path):
    return json.loads(path.read_text())


def logits(folder):
    with torch.no_grad():
        return mmdiff.load(folder, device="cpu")(input_ids=torch.arange(7)[None]).logits


def refused(source, target, words, **options):
    """The one-line error, with nothing left behind."""
    before = sorted(target.parent.iterdir())
    with pytest.raises(CheckpointError, match=words) as caught:
        convert(source, target, **options)
    assert "\n" not in str(caught.value)
    assert sorted(target.parent.iterdir()) == before


@pytest.mark.parametrize("name", PUBLISHED)
def test_there_and_back(tmp_path, name):
    source, ours, back = tmp_path / "source", tmp_path / "ours", tmp_path / "back"
    published = write(source, name, torch.bfloat16)
    made = convert(source, ours)
    assert (made.family, made.layout, made.files) == (name, "mmdiff", ["model.safetensors"])
    config = read_json(ours / "config.json")
    assert (config["model_type"], config["family"]) == ("mmdiff", name)
    assert config["published"] == tiny(name)
    assert torch.equal(logits(source), logits(ours))

    returned = convert(ours, back)
    assert (returned.family, returned.layout, returned.unused) == (name, name, 0)
    assert read_json(back / "config.json") == tiny(name)
    tensors = stored(back)
    left_out = published.keys() - tensors.keys()
    assert len(left_out) == made.unused == 2 * any(".post_layernorm." in key for key in published)
    assert all(".post_layernorm." in key for key in left_out)
    assert tensors.keys() < published.keys() or not left_out
    assert all(same_bytes(tensor, published[key]) for key, tensor in tensors.items())
    assert returned.bytes == made.bytes == sum(tensor.nbytes for tensor in tensors.values())


def test_dtypes_may_differ_from_tensor_to_tensor(tmp_path):
    source = tmp_path / "source"
    tensors = write(source, "llada", torch.bfloat16)
    tensors[KEY] = tensors[KEY].float()
    tensors["model.transformer.ln_f.weight"] = tensors["model.transformer.ln_f.weight"].half()
    save_file(tensors, source / "model.safetensors")
    convert(source, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back")
    back = stored(tmp_path / "back")
    assert all(same_bytes(back[key], tensor) for key, tensor in tensors.items())


def test_shards(tmp_path):
    source, ours, back = tmp_path / "source", tmp_path / "ours", tmp_path / "back"
    items = sorted(write(source, "llada").items())
    write_shards(source, [dict(items[:3]), dict(items[3:12]), dict(items[12:])])
    made = convert(source, ours, shard_gb=20e-6)
    assert len(made.files) > 2
    assert made.files[-1] == f"model-{len(made.files):05}-of-{len(made.files):05}.safetensors"
    index = read_json(ours / "model.safetensors.index.json")
    assert index["metadata"]["total_size"] == made.bytes
    assert not (ours / "model.safetensors").exists()
    for name in made.files:
        with safe_open(ours / name, framework="pt") as shard:
            held = set(shard.keys())
            assert shard.metadata() == {"format": "pt"}
        assert held == {key for key, file in index["weight_map"].items() if file == name}
        assert sum(stored(ours)[key].nbytes for key in held) <= 20e3
    convert(ours, back)
    assert all(same_bytes(stored(back)[key], tensor) for key, tensor in items)


def test_shard_numbers():
    assert shard_numbers([4, 4, 4], 8) == [0, 0, 1]
    assert shard_numbers([9, 1, 9], 8) == [0, 1, 2]
    assert shard_numbers([3], 1) == [0]


def test_a_pickle_becomes_safetensors(tmp_path):
    config = tiny("llada")
    source = write_config(tmp_path / "source", config)
    tensors = random_weights(config)
    # two names of one storage, and a matrix that does not lie in order
    tensors["model.transformer.ff_out.weight"] = tensors["model.transformer.wte.weight"]
    tensors[KEY] = tensors[KEY].T
    torch.save(tensors, source / "pytorch_model.bin")
    convert(source, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back")
    back = stored(tmp_path / "back")
    assert all(torch.equal(back[key], tensor) for key, tensor in tensors.items())


def test_tied_weights_have_one_tensor(tmp_path):
    config = tiny("dream") | {"tie_word_embeddings": True}
    source = write_config(tmp_path / "source", config)
    tensors = random_weights(config)
    save_file(tensors, source / "model.safetensors")
    convert(source, tmp_path / "ours")
    assert torch.equal(logits(source), logits(tmp_path / "ours"))
    convert(tmp_path / "ours", tmp_path / "back")
    assert stored(tmp_path / "back").keys() == tensors.keys()


def test_what_comes_along(tmp_path):
    source = tmp_path / "source"
    write(source, "llada")
    texts = ["tokenizer.json", "merges.txt", "generation_config.json", "chat_template.jinja"]
    for name in [*texts, "tokenization_x.py", "LICENSE", "optimizer.pt", "notes.md"]:
        (source / name).write_text(name)
    (source / "folder.json").mkdir()
    convert(source, tmp_path / "ours")
    kept = {path.name for path in (tmp_path / "ours").iterdir()}
    assert kept == {*texts, "LICENSE", "config.json", "model.safetensors"}
    assert (tmp_path / "ours" / "merges.txt").read_text() == "merges.txt"


def test_the_prompt_of_the_family_stays(tmp_path):
    source, ours = tmp_path / "source", tmp_path / "ours"
    write(source, "llada")
    words = {f"w{i}": i for i in range(60)} | {"<|mdm_mask|>": 60, "<|endoftext|>": 61}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, mask_token="<|mdm_mask|>", eos_token="<|endoftext|>"
    ).save_pretrained(source)
    convert(source, ours)
    messages = [{"role": "user", "content": "w7"}]
    first, second = (mmdiff.load(f, device="cpu").processor for f in (source, ours))
    assert first.prompt_ids(messages) == second.prompt_ids(messages)
    assert first.tokenizer.chat_template == second.tokenizer.chat_template


def test_a_trained_model_goes_back(tmp_path):
    source, ours, back = tmp_path / "source", tmp_path / "ours", tmp_path / "back"
    write(source, "lavida-llada")
    model = mmdiff.load(source, device="cpu")
    with torch.no_grad():
        model.projector.layers[0].bias.add_(1)
    model.config.decoding = {"steps": 3}
    model.save_pretrained(ours)
    convert(ours, back)
    assert torch.equal(logits(ours), logits(back))
    bias = stored(back)["model.mm_projector.0.bias"]
    assert torch.equal(bias, model.projector.layers[0].bias)


@pytest.mark.parametrize("make", ["mkdir", "touch", "link"])
def test_a_target_that_exists(tmp_path, make):
    target = tmp_path / "target"
    {
        "mkdir": target.mkdir,
        "touch": target.touch,
        "link": lambda: target.symlink_to("nowhere"),
    }[make]()
    write(tmp_path / "source", "llada")
    refused(tmp_path / "source", target, "exists already")


def test_a_source_that_does_not_load(tmp_path):
    tensors = write(tmp_path / "source", "llada")
    del tensors[KEY]
    save_file(tensors, tmp_path / "source" / "model.safetensors")
    refused(tmp_path / "source", tmp_path / "target", "lacks the weight")


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    write(tmp_path / "source", "llada")
    save, calls = module.save, []

    def full(tensors, path):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(module, "save", full)
    refused(tmp_path / "source", tmp_path / "target", "No space left", shard_gb=20e-6)
    assert len(calls) == 2


def test_a_place_that_is_none(tmp_path):
    write(tmp_path / "source", "llada")
    inside_a_file = tmp_path / "source" / "config.json" / "target"
    with pytest.raises(CheckpointError, match="cannot be written"):
        convert(tmp_path / "source", inside_a_file)


def test_our_own_models_have_no_other_layout(tmp_path, checkpoint):
    refused(Path(checkpoint), tmp_path / "target", "of no published family")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"family": "no"}, "family 'no' is unknown"),
        ({"family": ["no"]}, "is unknown"),
        ({"published": 3}, "of no published family"),
        ({"published": {"model_type": "llada"}}, "lacks the key 'd_model'"),
        ({"attention_layout": "prefix"}, "attention_layout is not what"),
        ({"shift": True}, "shift is not what"),
    ],
)
def test_a_config_that_contradicts_the_published_one(tmp_path, change, words):
    ours = tmp_path / "ours"
    write(tmp_path / "source", "llada")
    convert(tmp_path / "source", ours)
    write_config(ours, read_json(ours / "config.json") | change)
    refused(ours, tmp_path / "back", words)


def test_another_network_than_the_published_one(tmp_path):
    ours = tmp_path / "ours"
    write(tmp_path / "source", "llada")
    convert(tmp_path / "source", ours)
    config = read_json(ours / "config.json")
    config["text_config"]["rope_theta"] = 1e4
    write_config(ours, config)
    refused(ours, tmp_path / "back", "text_config is not what")
