"""SDAR and SDAR-VL folders against transformers' own Qwen3 and LLaVA-OneVision."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import mmdiff
from mmdiff.checkpoints.base import FAMILIES
from mmdiff.encoders.vision.tiles import Tiling, best_resolution, count, merge
from mmdiff.errors import CheckpointError, TrainingError
from mmdiff.raw_ids import canvas_from_ids
from mmdiff.training.build import build
from tests.checkpoints.helpers import random_weights, tiny, write, write_config
from tests.helpers import PLACEHOLDER


@torch.inference_mode()
def test_a_folder_gives_the_logits_of_a_block_causal_qwen3(tmp_path):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tensors, config = write(tmp_path, "sdar"), tiny("sdar")
    sizes = {k: v for k, v in config.items() if k not in ("model_type", "architectures")}
    theirs = Qwen3ForCausalLM(Qwen3Config(**sizes, attn_implementation="eager")).eval()
    theirs.load_state_dict(tensors)
    ids = torch.randint(0, 59, (1, 11), generator=torch.Generator().manual_seed(0))
    block = torch.arange(11) // config["block_size"]
    mask = torch.where(block[None] <= block[:, None], 0.0, float("-inf"))[None, None]
    expected = theirs(ids, attention_mask=mask).logits
    model = mmdiff.load(tmp_path, device="cpu")
    torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert model.config.mask_token_id == 60


def test_generate_uses_the_block_cache(tmp_path):
    write(tmp_path, "sdar")
    model = mmdiff.load(tmp_path, device="cpu")
    prompt = torch.arange(7)[None]
    made = [
        model.generate(prompt, max_new_tokens=9, cache=cache).sequences
        for cache in ("auto", "block", "none")
    ]
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


@torch.inference_mode()
def test_pictures_are_embedded_as_by_llava_onevision(tmp_path):
    """The same weights in both; the published names are older than those of transformers 5."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    config = tiny("sdar-vl")
    text = config["text_config"] | {"model_type": "qwen3"}
    same = ("image_grid_pinpoints", "vision_config", "vision_feature_layer", "vision_aspect_ratio")
    theirs = LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(text_config=text, image_token_id=59, **{k: config[k] for k in same})
    ).eval()
    tensors = random_weights(config)
    state = theirs.state_dict()
    for key, tensor in tensors.items():
        new = key if key.startswith("language_model.lm") else f"model.{key}"
        new = new.replace("language_model.model.", "language_model.")
        new = new.replace("language_model.lm_head", "lm_head")
        if new not in state:  # one more level in some versions
            new = new.replace("vision_tower.vision_model.", "vision_tower.")
        assert state[new].shape == tensor.shape, key
        state[new] = tensor
    theirs.float().load_state_dict(state)
    save_file(tensors, write_config(tmp_path, config) / "model.safetensors")
    model = mmdiff.load(tmp_path, device="cpu")
    picture = Image.effect_noise((70, 45), 60).convert("RGB")
    ids = torch.tensor([[3, PLACEHOLDER, 5]])
    canvas = canvas_from_ids(model, ids, None, [picture])
    pixels = canvas.features.pixel_values
    features = theirs.model.get_image_features(
        pixel_values=pixels[None], image_sizes=torch.tensor([[45, 70]]), return_dict=True
    ).pooler_output
    expected = torch.cat(list(features)) if not isinstance(features, torch.Tensor) else features
    ours = model.embed(canvas)[0, 1:-1]
    torch.testing.assert_close(ours, expected.reshape(ours.shape), atol=1e-5, rtol=1e-5)


def tiling():
    points = tuple((28 * w, 28 * h) for h in range(1, 7) for w in range(1, 7))
    return Tiling(
        28, "anyres", pinpoints=points, max_tiles=9, unpad=True, rounded=True, newline=True
    )


@pytest.mark.parametrize("size", [(49 * 27, 49 * 27), (40, 30), (400, 31), (31, 400), (99, 100)])
def test_tiles_merge_as_in_llava_onevision(size):
    from transformers.image_processing_utils import select_best_resolution
    from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

    ours = tiling()
    width, height = best_resolution(size, ours.pinpoints)
    points = [[h, w] for w, h in ours.pinpoints]
    assert select_best_resolution(size[::-1], points) == (height, width)
    grid = width // 28, height // 28
    tokens = torch.randn(1 + grid[0] * grid[1], 9, 4, generator=torch.Generator().manual_seed(1))
    newline = torch.randn(4)
    vision = SimpleNamespace(image_size=28, patch_size=9)
    config = SimpleNamespace(vision_config=vision, image_grid_pinpoints=points)
    expected, _ = LlavaOnevisionModel.pack_image_features(
        SimpleNamespace(config=config),
        [tokens],
        torch.tensor([size[::-1]]),
        image_newline=newline,
        vision_aspect_ratio="anyres_max_9",
    )
    expected = torch.cat(list(expected)) if not isinstance(expected, torch.Tensor) else expected
    got = merge(tokens, grid, size, ours, newline)
    assert len(got) == count(size, ours, 3)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vision_feature_layer": -2}, "vision_feature_layer=-2 is not supported"),
        ({"vision_aspect_ratio": "square"}, "'square' is not anyres_max_N"),
        ({"text_config": None}, "cannot|lacks|must"),
    ],
)
def test_a_config_that_cannot_be_used(tmp_path, change, words):
    write_config(tmp_path, tiny("sdar-vl") | change)
    with pytest.raises(CheckpointError, match=words):
        mmdiff.load(tmp_path, device="cpu")


def test_a_processor_file_of_transformers_is_no_obstacle(tmp_path):
    write(tmp_path, "sdar-vl")
    (tmp_path / "processor_config.json").write_text('{"processor_class": "LlavaOnevision"}')
    assert mmdiff.load(tmp_path, device="cpu").processor is None


def test_training_is_refused(tmp_path):
    write(tmp_path, "sdar")
    with pytest.raises(TrainingError, match="cannot be trained yet"):
        build(SimpleNamespace(model=str(tmp_path)))


def test_both_are_families():
    assert {"sdar", "sdar-vl"} <= set(FAMILIES.names())
