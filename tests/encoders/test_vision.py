"""Tiny networks with random weights of each source, behind the one interface."""

import json

import pytest
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from mmdiff.encoders.vision import build_vision, sources
from mmdiff.encoders.vision.from_transformers import load_pretrained
from mmdiff.errors import CheckpointError, SettingError

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
VIT = {**SIZES, "image_size": 32, "patch_size": 8}
MAP = {"hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 1, 1]}
TINY_CLIP = {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16}


def transformers_spec(model_type, config, **more):
    return {"source": "transformers", "model_type": model_type, "config": config, **more}


def open_clip_spec(**vision):
    settings = {"embed_dim": 192, "vision_cfg": vision}
    return {"source": "open_clip", "name": "tiny", "model_cfg": settings}


SPECS = {
    "siglip": transformers_spec("siglip_vision_model", VIT),
    "siglip -2": transformers_spec("siglip_vision_model", VIT, select_layer=-2),
    "siglip2": transformers_spec(
        "siglip2_vision_model", {**SIZES, "num_patches": 16, "patch_size": 8}, select_layer=-2
    ),
    "clip": transformers_spec("clip_vision_model", VIT, select_layer=-2),
    "vit": transformers_spec("vit", VIT),
    "convnext": transformers_spec("convnext", MAP, image_size=64),
    "bit": transformers_spec("bit", {**MAP, "embedding_size": 8, "num_groups": 4}, image_size=64),
    "resnet": transformers_spec("resnet", {**MAP, "embedding_size": 8}, image_size=64),
    "timm vit": {
        "source": "timm",
        "name": "vit_tiny_patch16_224",
        "kwargs": {"depth": 1},
        "image_size": 64,
    },
    "timm siglip": {
        "source": "timm",
        "name": "vit_base_patch16_siglip_224",
        "kwargs": {"depth": 1, "embed_dim": 64, "num_heads": 2, "img_size": 64},
    },
    "timm rope": {
        "source": "timm",
        "name": "eva02_tiny_patch14_224",
        "kwargs": {"depth": 1, "img_size": 56},
    },
    "timm convnext": {"source": "timm", "name": "convnext_atto", "image_size": 64},
    "timm swin": {
        "source": "timm",
        "name": "swin_tiny_patch4_window7_224",
        "kwargs": {"depths": [1, 1], "embed_dim": 16, "num_heads": [1, 1]},
    },
    "open_clip vit": open_clip_spec(**TINY_CLIP),
    "open_clip resnet": open_clip_spec(image_size=64, layers=[1, 1, 1, 1], width=16),
    "open_clip coca": open_clip_spec(**TINY_CLIP, attentional_pool=True, attn_pooler_heads=8),
    "open_clip timm": open_clip_spec(
        image_size=64, timm_model_name="vit_tiny_patch16_224", timm_pool="", timm_proj="linear"
    ),
}


def pictures(encoder, count=2):
    return torch.randn(count, 3, encoder.image_size, encoder.image_size)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_interface(spec):
    encoder = build_vision(spec)
    features = encoder(pictures(encoder))
    assert features.shape == (2, encoder.tokens, encoder.width)
    assert encoder.name and encoder.resample in ("bicubic", "bilinear")
    assert len(encoder.mean) == len(encoder.std) == 3
    features.square().sum().backward()
    unused = [name for name, p in encoder.named_parameters() if p.grad is None]
    assert not unused


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_spec_rebuilds_the_same_network(spec):
    encoder = build_vision(spec).eval()
    stored = json.loads(json.dumps(encoder.spec()))
    with torch.device("meta"):
        empty = build_vision(stored)
    assert list(empty.state_dict()) == list(encoder.state_dict())
    assert (empty.tokens, empty.width, empty.mean) == (encoder.tokens, encoder.width, encoder.mean)
    again = build_vision(stored).eval()
    again.load_state_dict(encoder.state_dict())
    x = pictures(encoder)
    assert torch.equal(again(x), encoder(x))
    assert again.spec() == encoder.spec()


class WrapConfig(PreTrainedConfig):
    model_type = "wrap"


class Wrap(PreTrainedModel):
    config_class = WrapConfig

    def __init__(self, config):
        super().__init__(config)
        self.vision = build_vision(config.vision_spec)
        self.post_init()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_inside_a_transformers_model_nothing_is_lost(spec, tmp_path):
    encoder = build_vision(spec).eval()
    model = Wrap(WrapConfig(vision_spec=encoder.spec())).eval()
    model.vision.load_state_dict(encoder.state_dict())
    model.save_pretrained(tmp_path)
    again, report = Wrap.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    x = pictures(encoder)
    assert torch.equal(again.vision(x), encoder(x))


@pytest.mark.parametrize("layer", [-1, -2, -3])
@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_selected_layer_equals_transformers(kind, layer, tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig
    from transformers import SiglipVisionModel as Siglip

    torch.manual_seed(0)
    full = Siglip(SiglipVisionConfig(**VIT)) if kind == "siglip" else None
    full = full or CLIPVisionModel(CLIPVisionConfig(**VIT))
    full.eval().save_pretrained(tmp_path)
    encoder = load_pretrained(str(tmp_path), select_layer=layer).eval()
    x = pictures(encoder)
    with torch.no_grad():
        states = full(x, output_hidden_states=True)
        expected = states.last_hidden_state if layer == -1 else states.hidden_states[layer]
        got = encoder(x)
    assert torch.allclose(got, expected[:, 1:] if kind == "clip" else expected, atol=1e-6)
    layers = {name.split(".")[3] for name in encoder.state_dict() if ".layers." in name}
    assert len(layers) == 4 + layer


def test_siglip2_equals_transformers_with_its_own_patches():
    encoder = build_vision({**SPECS["siglip2"], "image_size": 48, "select_layer": -1}).eval()
    assert encoder.tokens == 36  # another grid than the position table's 4 x 4
    x = pictures(encoder)
    squares = [x[:, :, r : r + 8, c : c + 8] for r in range(0, 48, 8) for c in range(0, 48, 8)]
    flat = torch.stack([square.permute(0, 2, 3, 1).flatten(1) for square in squares], dim=1)
    seen, shapes = torch.ones(2, 36, dtype=torch.long), torch.tensor([[6, 6], [6, 6]])
    expected = encoder.net(flat, seen, shapes).last_hidden_state
    assert torch.allclose(encoder(x), expected, atol=1e-5)


def test_feature_map_is_read_row_by_row():
    encoder = build_vision(SPECS["convnext"]).eval()
    x = pictures(encoder)
    grid = encoder.net(x).last_hidden_state
    assert torch.equal(encoder(x)[:, 1], grid[:, :, 0, 1])


def test_weights_of_a_pair_and_its_preprocessing(tmp_path):
    from transformers import SiglipConfig, SiglipModel

    text = {**SIZES, "vocab_size": 20, "max_position_embeddings": 8, "projection_size": 32}
    pair = SiglipModel(SiglipConfig(text_config=text, vision_config=VIT)).eval()
    pair.save_pretrained(tmp_path)
    stated = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    encoder = load_pretrained(str(tmp_path)).eval()
    assert encoder.mean == (0.1, 0.2, 0.3) and encoder.resample == "bilinear"
    assert encoder.name == tmp_path.name and encoder.image_size == 32
    x = pictures(encoder)
    assert torch.allclose(encoder(x), pair.vision_model(x).last_hidden_state, atol=1e-6)
    assert build_vision(encoder.spec()).tokens == 16


def test_wrong_weights(tmp_path):
    build_vision(SPECS["convnext"]).net.save_pretrained(tmp_path / "convnext")
    for name in ("convnext", "none"):
        with pytest.raises(CheckpointError):
            build_vision(SPECS["siglip"], weights=str(tmp_path / name))
    with pytest.raises(CheckpointError, match="no configuration"):
        load_pretrained(str(tmp_path / "none"))
    for name in ("timm vit", "open_clip vit"):
        spec = SPECS[name] | ({"name": "ViT-B-32"} if "clip" in name else {})
        spec.pop("model_cfg", None)
        with pytest.raises(CheckpointError, match="no such file"):
            build_vision(spec, weights="laion2b")


def test_timm_weights_from_a_file(tmp_path):
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    spec = {"source": "timm", "name": "vit_tiny_patch16_224", "kwargs": {"depth": 1}}
    model = timm.create_model("vit_tiny_patch16_224", depth=1).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    encoder = build_vision(spec, weights=str(tmp_path / "w.safetensors")).eval()
    x = pictures(encoder, 1)
    assert torch.allclose(encoder(x), model.forward_features(x)[:, 1:], atol=1e-6)
    assert (encoder.image_size, encoder.tokens) == (224, 196)


def test_open_clip_equals_its_own_tokens():
    open_clip = pytest.importorskip("open_clip")
    encoder = build_vision(SPECS["open_clip vit"]).eval()
    text = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
    whole = open_clip.CLIP(192, {**TINY_CLIP, "output_tokens": True}, text).visual.eval()
    whole.load_state_dict(encoder.net.state_dict(), strict=False)
    x = pictures(encoder)
    assert torch.allclose(encoder(x), whole(x)[1], atol=1e-6)


def test_open_clip_knows_its_names():
    encoder = build_vision({"source": "open_clip", "name": "ViT-S-32-alt", "image_size": 64})
    assert encoder.tokens == 4 and encoder.name == "ViT-S-32-alt"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "no 'source'"),
        ({"source": "timmm"}, "Did you mean timm"),
        (transformers_spec("sigllip", {}), "no model_type"),
        (transformers_spec("vit", {"hiden_size": 8}), "Did you mean hidden_size"),
        (transformers_spec("vit", {"hidden_size": "wide"}), "wrong config"),
        (
            transformers_spec("siglip_vision_model", {**VIT, "num_attention_heads": 5}),
            "wrong config",
        ),
        (transformers_spec("vit", VIT, select_layer=-9), "select_layer -9"),
        (transformers_spec("vit", VIT, select_layer=2), "select_layer 2"),
        (transformers_spec("convnext", MAP, image_size=64, select_layer=-2), "select_layer -2"),
        (transformers_spec("convnext", {**MAP}, img_size=64), "unknown key 'img_size'"),
        (transformers_spec("resnet", {**MAP, "embedding_size": 8}), "add image_size"),
        (transformers_spec("vit", VIT, resample="lanczos"), "use bicubic or bilinear"),
        (transformers_spec("vit", VIT, mean=[0.5]), "three numbers"),
        ({"source": "timm", "name": "vit_tinny_patch16_224"}, "vit_tiny_patch16_224"),
        (
            {"source": "timm", "name": "vit_tiny_patch16_224", "kwargs": {"dept": 2}},
            "wrong kwargs",
        ),
        ({"source": "open_clip", "name": "ViT-B-3"}, "ViT-B-32"),
    ],
)
def test_mistakes(spec, message):
    with pytest.raises(SettingError, match=message):
        build_vision(spec)


def test_the_sources():
    assert sources.names() == ["open_clip", "qwen2_5_vl", "timm", "transformers"]
