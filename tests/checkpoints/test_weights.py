"""Reading weights: strict about every tensor, and never more than tensors from a pickle."""

import json

import pytest
import torch
from safetensors.torch import save_file

import mmdiff
from mmdiff.errors import CheckpointError, SettingError
from tests.checkpoints.helpers import tiny, write, write_config, write_shards

LAYER = "model.transformer.blocks.0."
KEY = LAYER + "q_proj.weight"
OURS = "backbone.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "llada"


@pytest.fixture
def tensors(folder):
    return write(folder, "llada")


def refused(folder, *words, **options):
    """The one-line error of loading `folder`."""
    with pytest.raises(CheckpointError) as caught:
        mmdiff.load(folder, device="cpu", **options)
    text = str(caught.value)
    assert str(folder) in text and "\n" not in text
    for word in words:
        assert word in text


def rename(tensors):
    tensors[LAYER + "query.weight"] = tensors.pop(KEY)


def mis_shape(tensors):
    tensors[KEY] = tensors[KEY][1:].clone()


def add_layer(tensors):
    tensors[KEY.replace(".0.", ".7.")] = tensors[KEY].clone()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rename, ["that a LLaDA model has not", LAYER + "query.weight"]),
        (lambda tensors: tensors.pop(KEY), ["lacks the weight", OURS]),
        (lambda tensors: tensors.clear(), ["lacks the weight", "and 20 more"]),
        (add_layer, ["that the model has not", ".7.q_proj"]),
        (mis_shape, ["wrong shape", KEY, "(31, 32), not (32, 32)"]),
    ],
    ids=["renamed", "missing", "none", "extra", "mis-shaped"],
)
def test_wrong_tensors(folder, tensors, change, words):
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    refused(folder, *words)


def test_shards_load_like_one_file(folder, tensors):
    whole = mmdiff.load(folder, device="cpu").state_dict()
    items = sorted(tensors.items())
    write_shards(folder, [dict(items[:9]), dict(items[9:])])
    sharded = mmdiff.load(folder, device="cpu").state_dict()
    assert whole.keys() == sharded.keys()
    assert all(torch.equal(whole[key], sharded[key]) for key in whole)


def test_a_tensor_in_two_shards(folder, tensors):
    write_shards(folder, [tensors, {KEY: tensors[KEY]}])
    refused(folder, "holds a weight twice", KEY)


def test_a_truncated_shard(folder, tensors):
    items = sorted(tensors.items())
    second = write_shards(folder, [dict(items[:9]), dict(items[9:])])[1]
    second.write_bytes(second.read_bytes()[:-100])
    refused(folder, second.name, "cannot be read")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"weight_map": {KEY: "gone.safetensors"}}, "the shard gone.safetensors"),
        ({"weight_map": {KEY: "../x.safetensors"}}, "is not a file of this folder"),
        ({"weight_map": {KEY: "/x.safetensors"}}, "is not a file of this folder"),
        ({"weight_map": {KEY: ".."}}, "is missing"),
        ({"weight_map": {KEY: 3}}, "is not a file of this folder"),
        ({"weight_map": [KEY]}, "cannot be read"),
        ({}, "cannot be read"),
        ([], "cannot be read"),
    ],
)
def test_a_wrong_index(folder, tensors, index, words):
    save_file(tensors, folder.parent / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, words)


def test_a_pickle_of_plain_tensors_loads(folder, tensors):
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    state = mmdiff.load(folder, device="cpu").state_dict()
    assert torch.equal(state[OURS], tensors[KEY])


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({KEY: Bomb()}, "never unpickled"),
        ({KEY: [1, 2]}, "is no named tensor"),
        ({3: torch.zeros(2)}, "is no named tensor"),
        ([1, 2], "cannot be read"),
    ],
    ids=["code", "list", "number", "no-names"],
)
def test_a_pickle_of_anything_else_is_refused(folder, tensors, content, words):
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin", words)


def test_a_damaged_pickle(folder, tensors):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"no pickle at all")
    refused(folder, "pytorch_model.bin")


def test_no_weights(tmp_path):
    refused(write_config(tmp_path, tiny("llada")), "the weights are missing")


def test_an_unknown_family(tmp_path):
    refused(write_config(tmp_path, {"model_type": "gpt2"}), "'gpt2' is unknown", "llada")


@pytest.mark.parametrize("name", ["int8", "float8_e4m3fn", "half", ""])
def test_an_unknown_dtype(folder, tensors, name):
    with pytest.raises(SettingError, match=r"is unknown; use one of float32, bfloat16"):
        mmdiff.load(folder, device="cpu", dtype=name)


def test_bfloat16_is_for_parameters_alone(folder, tensors):
    model = mmdiff.load(folder, device="cpu", dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    buffers = dict(model.named_buffers())
    assert buffers and {b.dtype for b in buffers.values()} == {torch.float32}
    assert model(input_ids=torch.arange(5)[None]).logits.dtype == torch.bfloat16


def test_stored_bfloat16_stays_exact_in_float32(folder):
    stored = write(folder, "llada", torch.bfloat16)
    state = mmdiff.load(folder, device="cpu").state_dict()
    assert state[OURS].dtype == torch.float32
    assert torch.equal(state[OURS], stored[KEY].float())
