"""A Dimple folder with a tokenizer: prompts, pictures of any size, answers, saving."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import mmdiff
from mmdiff.cli.main import main
from mmdiff.errors import CheckpointError, InputError, TrainingError
from mmdiff.model import MMDiffModel
from mmdiff.processing import PLACEHOLDER
from mmdiff.training.build import build
from tests.checkpoints.helpers import random_weights, tiny, write_config, write_tokenizer

NAMED = {
    311: "<|mask|>",
    312: "<|endoftext|>",
    313: "<|im_start|>",
    314: "<|im_end|>",
    315: "<|vision_start|>",
    316: "<|vision_end|>",
    317: "<|image_pad|>",
}
IDS = {name: i for i, name in NAMED.items()}
CONFIG = tiny("dimple") | {
    "vocab_size": 320,
    "mask_token_id": 311,
    "image_token_id": 317,
    "eos_token_id": 312,
    "pad_token_id": 312,
    "max_position_embeddings": 200,
}
PICTURES = [Image.new("RGB", size, "teal") for size in ((60, 90), (56, 56), (130, 40))]
TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>hi<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny checkpoint with large weights, so that answers depend on what they should."""
    folder = write_config(tmp_path_factory.mktemp("dimple") / "model", CONFIG)
    save_file({k: 2 * v for k, v in random_weights(CONFIG).items()}, folder / "model.safetensors")
    write_tokenizer(folder, 318, NAMED)
    said = {"min_pixels": 28 * 28, "max_pixels": 28 * 28 * 20}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    published = {"processor_class": "DimpleProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(published))
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return mmdiff.load(folder, device="cpu")


def test_the_prompt_is_the_published_one(model):
    parts = [{"type": "image"}, {"type": "text", "text": "hi"}]
    ids = model.processor.prompt_ids([{"role": "user", "content": parts}])
    assert model.processor.tokenizer.decode(ids) == TEMPLATE
    assert ids.count(IDS["<|image_pad|>"]) == 1
    typed = [*parts, {"type": "text", "text": "<|image_pad|>"}]
    ids = model.processor.prompt_ids([{"role": "user", "content": typed}])
    assert ids.count(IDS["<|image_pad|>"]) == 1
    assert set(model.processor.end_ids) == {IDS["<|endoftext|>"], IDS["<|im_end|>"]}
    assert {311, 315, 316, 317, 318, 319} <= set(model.forbidden().tolist())


def test_answers_on_the_command_line(folder, tmp_path, capsys):
    PICTURES[0].save(tmp_path / "picture.png")
    asked = ["answer", str(tmp_path / "picture.png"), "what is this?", "--model", str(folder)]
    assert main([*asked, "--json", "max_new_tokens=4", "steps=2"]) == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert 1 <= row["nfe"] <= 2
    assert main(["info", str(folder)]) == 0
    assert "any size -> up to 20 tokens" in capsys.readouterr().out


@pytest.mark.parametrize("cache", ["none", "prefix", "prefill", "delayed"])
def test_pictures_of_different_sizes_in_one_batch(model, cache):
    settings = {"max_new_tokens": 6, "steps": 4, "temperature": 1.0, "cache": cache}
    both = model.caption(PICTURES, seed=[1, 2, 3], **settings)
    alone = [model.caption(p, seed=i, **settings) for i, p in enumerate(PICTURES, start=1)]
    assert [g.ids for g in both] == [g.ids for g in alone]
    again = model.answer(PICTURES[::-1], "which?", **settings)  # three pictures in one prompt
    assert again.ids != model.answer(PICTURES, "which?", **settings).ids


@torch.inference_mode()
def test_pictures_patches_and_placeholders_are_one(model):
    made = [model.tiling.cut(picture) for picture in PICTURES[:2]]
    patches, grids = (
        torch.cat([t.pixels for t in made]),
        model.tiling.patch_grids([t.grid for t in made]),
    )
    image, counts = IDS["<|image_pad|>"], [model.cells_of(t.size) for t in made]
    assert len(set(counts)) == 2
    raw = torch.tensor([[5, PLACEHOLDER, 6, 7, PLACEHOLDER, 8]])
    full = torch.tensor([[5, *[image] * counts[0], 6, 7, *[image] * counts[1], 8]])
    shown = [
        model(input_ids=raw, pixel_values=PICTURES[:2]).logits,
        model(input_ids=raw, pixel_values=patches, image_grid_thw=grids).logits,
        model(input_ids=full, pixel_values=patches, image_grid_thw=grids).logits,
    ]
    assert torch.equal(shown[0], shown[1]) and torch.equal(shown[1], shown[2])
    swapped = model(input_ids=raw, pixel_values=PICTURES[1::-1]).logits
    assert swapped.shape == shown[0].shape and not torch.allclose(swapped, shown[0])
    right = torch.cat([full, full[:, :3]], dim=1)
    valid = (torch.arange(right.shape[1]) < full.shape[1]).long()[None]
    given = {"pixel_values": patches, "image_grid_thw": grids, "max_new_tokens": 5, "seed": 3}
    padded = model.generate(right, valid, **given)
    assert torch.equal(padded.sequences[:, -5:], model.generate(full, **given).sequences[:, -5:])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "patches need image_grid_thw"),
        ({"image_grid_thw": torch.tensor([[1, 4, 4]])}, "does not fit"),
        ({"image_grid_thw": torch.tensor([[1, 2, 2]])}, "1 pictures fill 1 cells"),
    ],
)
def test_patches_that_do_not_fit_are_refused(model, more, words):
    with pytest.raises(InputError, match=words):
        model(input_ids=torch.tensor([[5, 6]]), pixel_values=torch.zeros(4, 1176), **more)


@torch.inference_mode()
def test_a_saved_model_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[5, PLACEHOLDER, 6, 7]])
    logits = model(input_ids=ids, pixel_values=PICTURES[:1]).logits
    for again in (mmdiff.load(tmp_path, device="cpu"), MMDiffModel.from_pretrained(tmp_path)):
        assert torch.equal(again.eval()(input_ids=ids, pixel_values=PICTURES[:1]).logits, logits)
        assert again.processor.tiling == model.tiling
        messages = [{"role": "user", "content": [{"type": "image"}]}]
        assert again.processor.prompt_ids(messages) == model.processor.prompt_ids(messages)


def test_training_is_refused(folder):
    with pytest.raises(TrainingError, match="cannot be trained yet"):
        build(SimpleNamespace(model=str(folder)))


def test_a_tokenizer_without_the_image_token_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    path.write_text(path.read_text().replace("<|image_pad|>", "<|other|>"))
    with pytest.raises(CheckpointError, match=r"lacks the token '<.image_pad.>'"):
        mmdiff.load(tmp_path / "model")
