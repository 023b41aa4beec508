"""Vision networks of transformers: SigLIP, SigLIP 2, CLIP, DINOv2, ViT, ConvNeXt, BiT, ResNet...

A spec has ``source: transformers``, ``model_type``, ``config`` (arguments of its configuration
class) and optionally ``select_layer``, ``image_size``, ``mean``, ``std``, ``resample`` and
``attention`` (transformers' attn_implementation; sdpa where the network has it).
``select_layer: -1`` (the default) is the network's own ``last_hidden_state``; ``-2`` and below are
``hidden_states[select_layer]``, which no final norm has touched (LLaVA, LaViDa and LLaDA-V use -2).
Layers and heads that the chosen output does not need are not built.
"""

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmdiff.encoders.vision import sources
from mmdiff.encoders.vision.base import COMMON_KEYS, VisionEncoder, as_tokens, check_keys
from mmdiff.errors import CheckpointError, SettingError

KEYS = (*COMMON_KEYS, "model_type", "config", "select_layer", "attention")
RESAMPLE = {2: "bilinear", 3: "bicubic"}
OWN_POOLER = ("bit", "regnet", "resnet", "swin")  # without parameters, and always called
HEAD = "vision_use_head"  # SigLIP's pooling behind its tokens, which nothing here reads


class TransformersVision(VisionEncoder):
    def __init__(self, spec: dict, net: Any):
        super().__init__(spec)
        # Some versions of transformers wrap the tower once more; keys must not depend on it.
        self.net = without_heads(getattr(net, "vision_model", net))
        config = net.config
        self.naflex = config.model_type == "siglip2_vision_model"
        self.patch = square_side(getattr(config, "patch_size", None)) or 0
        size = spec.get("image_size") or square_side(getattr(config, "image_size", None))
        if size is None and self.naflex:
            size = int(config.num_patches**0.5) * self.patch
        if size is None:
            raise SettingError(f"vision encoder {config.model_type}: add image_size to its spec")
        self.image_size = size
        mean, std = spec.get("mean", self.mean), spec.get("std", self.std)
        name = spec.get("name", config.model_type)
        self.describe(name, size, mean, std, spec.get("resample", self.resample))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Normalised pictures (n, 3, image_size, image_size) -> (n, tokens, width)."""
        if self.naflex:
            features = self.net(**self.patches(pixel_values)).last_hidden_state
        else:
            features = self.net(pixel_values).last_hidden_state
        if features.dim() == 4:
            return as_tokens(features)
        # The class and register tokens stand in front of the patches.
        return features[:, -((self.image_size // self.patch) ** 2) :] if self.patch else features

    def patches(self, pixel_values: torch.Tensor) -> dict:
        """What SigLIP 2's variable-resolution network wants: (n, h*w, patch*patch*3) and grids."""
        side = self.image_size // self.patch
        grid = pixel_values.unflatten(3, (side, self.patch)).unflatten(2, (side, self.patch))
        flat = grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        # read as python numbers inside, hence never on an accelerator
        shapes = torch.full((len(flat), 2), side, dtype=torch.long, device="cpu")
        names = inspect.signature(self.net.forward).parameters  # not the same in all versions
        mask = "attention_mask" if "attention_mask" in names else "pixel_attention_mask"
        return {"pixel_values": flat, mask: None, "spatial_shapes": shapes}


def without_heads(net: Any) -> Any:
    """`net` without the parts that only pooling or pretraining needs; no loss would reach them."""
    kind = net.config.model_type
    if kind == "clip_vision_model":
        net.post_layernorm = nn.Identity()  # CLIP norms the class token alone
    if kind.startswith("convnext"):
        net.layernorm = nn.Identity()  # as does ConvNeXt with the mean
    elif isinstance(getattr(net, "pooler", None), nn.Module) and not kind.startswith(OWN_POOLER):
        net.pooler = None
    if isinstance(getattr(getattr(net, "embeddings", None), "mask_token", None), nn.Parameter):
        net.embeddings.mask_token = None
    return net


def square_side(size) -> int | None:
    """One number from an int or from [h, w]; SettingError if it is not square."""
    if isinstance(size, (list, tuple)):
        if len(set(size)) > 1:
            raise SettingError(f"vision encoder: size {list(size)} is not square, which is needed")
        size = size[0]
    return size


def network_config(spec: dict):
    """The transformers configuration of a spec, cut to the layers that are needed."""
    from transformers import CONFIG_MAPPING

    model_type = spec.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise SettingError(
            f"vision encoder: transformers has no model_type {model_type!r}; "
            "use for example siglip_vision_model, clip_vision_model, convnext or bit"
        )
    config_class = CONFIG_MAPPING[model_type]
    given = {key: value for key, value in spec.get("config", {}).items() if key != HEAD}
    check_keys(given, config_class().to_dict(), f"vision encoder {model_type}")
    try:
        config = config_class(**given)
    except Exception as error:  # the class checks types and ranges in its own ways
        raise SettingError(f"vision encoder {model_type}: wrong config ({error})") from error
    if "image_size" in spec and hasattr(config, "image_size"):
        config.image_size = spec["image_size"]
    # Some versions of SigLIP's config do not name it.
    if hasattr(config, HEAD) or str(model_type).startswith("siglip"):
        setattr(config, HEAD, False)
    drop = -spec.get("select_layer", -1) - 1
    if drop and (hasattr(config, "depths") or not 0 < drop <= config.num_hidden_layers):
        raise SettingError(
            f"vision encoder {model_type}: select_layer {-drop - 1} is not a layer of it; use -1"
        )
    if drop:
        config.num_hidden_layers -= drop
    return config


def without_final_norm(net: Any) -> None:
    core = getattr(net, "vision_model", net)
    for name in ("post_layernorm", "layernorm", "norm"):
        if hasattr(core, name):
            setattr(core, name, nn.Identity())


@sources.register("transformers")
def build(spec: dict, weights: str | None = None, download: bool = False) -> TransformersVision:
    """The encoder of `spec`; `weights` is a folder or hub name that transformers can load."""
    from transformers import AutoModel

    check_keys(spec, KEYS, "vision encoder")
    config = network_config(spec)
    try:
        if weights is None:
            net = AutoModel.from_config(config, attn_implementation=spec.get("attention"))
        else:
            net = load(config, weights, download)
        if spec.get("select_layer", -1) != -1:
            without_final_norm(net)
        return TransformersVision(spec, net)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise SettingError(f"vision encoder {config.model_type}: wrong config ({error})") from error


def load(config: Any, weights: str, download: bool) -> Any:
    """The network with the weights of a folder or hub name, of which none may be missing."""
    from transformers import AutoModel

    try:
        net, report = AutoModel.from_pretrained(
            weights,
            config=config,
            dtype=torch.float32,
            local_files_only=not download,
            output_loading_info=True,
        )
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"vision weights {weights}: {reason}; give a folder of this network, or download=True"
        ) from error
    if report["missing_keys"]:
        first = sorted(report["missing_keys"])[0]
        raise CheckpointError(
            f"vision weights {weights}: {first} is missing; give a folder of this network"
        )
    return net


def read_spec(weights: str, select_layer: int = -1, download: bool = False) -> dict:
    """The spec of a published vision model, or of the vision half of a SigLIP or CLIP pair."""
    from transformers import CONFIG_MAPPING, AutoConfig

    try:
        config = AutoConfig.from_pretrained(weights, local_files_only=not download)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"vision weights {weights}: no configuration found; give a folder, or download=True"
        ) from error
    config = getattr(config, "vision_config", config)
    known = CONFIG_MAPPING[config.model_type]().to_dict()
    changed = config.to_diff_dict()
    skip = {"model_type", "transformers_version", "architectures", "dtype", HEAD}
    spec = {
        "source": "transformers",
        "name": Path(weights).name,
        "model_type": config.model_type,
        "config": {k: v for k, v in changed.items() if k in known and k not in skip},
        "select_layer": select_layer,
    }
    if hasattr(config, "image_size"):  # the size of the position table, which weights must fit
        spec["image_size"] = square_side(config.image_size)
    return read_preprocessing(weights, download) | spec


def read_preprocessing(weights: str, download: bool) -> dict:
    """``mean``, ``std``, ``resample``, ``image_size`` as far as the image processor states them."""
    from transformers.utils import cached_file

    for name in ("preprocessor_config.json", "processor_config.json"):
        path = cached_file(
            weights,
            name,
            local_files_only=not download,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if path is not None:
            break
    else:
        return {}
    stated = json.loads(Path(path).read_text(encoding="utf-8"))
    stated = stated.get("image_processor", stated)
    found = {"mean": stated.get("image_mean"), "std": stated.get("image_std")}
    found["resample"] = RESAMPLE.get(stated.get("resample"))
    crop = stated.get("crop_size") or stated.get("size") or {}
    if isinstance(crop, dict):
        found["image_size"] = crop.get("height", crop.get("shortest_edge"))
    return {key: value for key, value in found.items() if value is not None}


def load_pretrained(
    weights: str, select_layer: int = -1, download: bool = False
) -> TransformersVision:
    """A published network with its weights; with `download` the hub may be asked."""
    return build(read_spec(weights, select_layer, download), weights, download)
