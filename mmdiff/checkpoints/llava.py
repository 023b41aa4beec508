"""What LaViDa and LLaDA-V share: a SigLIP tower, an MLP projector, LLaVA's tiles and newline."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from mmdiff.checkpoints.base import Json, need, refuse
from mmdiff.encoders.vision.tiles import Tiling
from mmdiff.errors import CheckpointError
from mmdiff.processing import PLACEHOLDER

SO400M: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
CLIP_LARGE: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
TOWERS = {
    "siglip-so400m-patch14-384": SO400M,
    "siglip2-so400m-patch14-384": SO400M,
    "clip-vit-large-patch14-336": CLIP_LARGE,
}
CLIP_STATISTICS: dict[str, Any] = {  # of its pixels; SigLIP's are 0.5
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
TOWER = "model.vision_tower.vision_tower."
KEYS = (
    (TOWER + "vision_model.", "vision.net."),
    ("model.mm_projector.", "projector.layers."),
    ("model.image_newline", "image_newline"),
)
UNUSED = tuple(TOWER + "vision_model." + part for part in ("post_layernorm.", "head."))
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
# What a family with pictures says beside its language model's prompt.
PICTURES: dict[str, Any] = {"unused": UNUSED, "system": SYSTEM, "after_images": "\n"}


def vision(config: Json, *, pooled: bool) -> dict[str, Any]:
    """Arguments of `MMDiffConfig` for the picture side; CheckpointError for an unknown tower."""
    refuse(config, {"mm_use_im_start_end": False, "mm_use_im_patch_token": False})
    tower = config.get("vision_config") or config.get("vision_config_tiny")
    if tower is None:
        name = str(need(config, "mm_vision_tower")[0]).rstrip("/").rpartition("/")[2]
        if name not in TOWERS:
            known = ", ".join(TOWERS)
            raise CheckpointError(f"config.json: mm_vision_tower {name!r} is not one of {known}")
        tower = TOWERS[name]
    side = tower["image_size"]
    kind = tower.get("model_type", "siglip_vision_model")
    statistics = CLIP_STATISTICS if kind == "clip_vision_model" else {}
    spec = {
        "source": "transformers",
        "model_type": kind,
        "config": {k: v for k, v in tower.items() if k != "model_type"},
        "select_layer": -2,  # the published code drops the last layer and the final norm
        "image_size": side,
        "attention": "eager",  # as published: the same sums in the same order, equal to the bit
        **{name: list(numbers) for name, numbers in statistics.items()},
    }
    tiling = Tiling.from_llava(dict(config), side, pooled=pooled)
    return {
        "vision_config": spec,
        "projector": {"kind": config.get("mm_projector_type", "linear")},
        "tiling": asdict(replace(tiling, **statistics)),
        "image_token_id": PLACEHOLDER,
    }
