"""Dimple (yu-rp/Dimple): Dream with three-axis positions, behind Qwen2.5-VL's vision tower."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mmdiff.checkpoints import dream
from mmdiff.checkpoints.base import FAMILIES, Family, Json, need, refuse
from mmdiff.encoders.vision.patches import Patching

TOWER = (
    "depth",
    "hidden_size",
    "intermediate_size",
    "num_heads",
    "out_hidden_size",
    "patch_size",
    "spatial_merge_size",
    "temporal_patch_size",
    "window_size",
    "fullatt_block_indexes",
)
KEYS = (
    ("visual.", "vision.net."),
    ("img_projector.linear_1.", "projector.layers.0."),
    ("img_projector.linear_2.", "projector.layers.2."),
    *dream.KEYS,
)
VISION = ("<|vision_start|>", "<|vision_end|>")
FORBIDDEN = (*VISION, "<|vision_pad|>", "<|video_pad|>")


def config(published: Json) -> dict[str, Any]:
    """Arguments of `MMDiffConfig`. Bounds of a picture's size stand in preprocessor_config.json."""
    made = dream.text(published)
    sections = published.get("mrope_section", [16, 24, 24])
    rope = {"rope_type": "default", "rope_theta": made["text_config"].pop("rope_theta")}
    tower, image = need(published, "vision_config", "image_token_id")
    refuse(tower, {"hidden_act": "silu", "in_channels": 3, "in_chans": 3})
    settings = dict(zip(TOWER, need(tower, *TOWER), strict=True))
    patching = Patching(
        patch=settings["patch_size"],
        merge=settings["spatial_merge_size"],
        frames=settings["temporal_patch_size"],
    )
    backbone = {
        "model_type": "qwen2_5_vl_text",
        "rope_parameters": rope | {"mrope_section": sections},
        "bos_token_id": None,  # the class's own lie outside a small vocabulary
        "eos_token_id": None,
    }
    return made | {
        "text_config": made["text_config"] | backbone,
        "vision_config": {"source": "qwen2_5_vl", "config": settings},
        "projector": {"kind": "mlp2x_silu"},
        "tiling": asdict(patching),
        "attention_layout": "full" if published.get("full_attn_mask", True) else "causal",
        "image_token_id": image,
        "decoding": {"max_new_tokens": 64, "accept": "confident", "threshold": 0.95},
    }


FAMILIES.register("dimple")(
    Family(
        title="Dimple",
        recognise=lambda config: config.get("model_type") == "dimple",
        config=config,
        keys=KEYS,
        template=dream.TEMPLATE,
        system="You are a helpful assistant.",
        mask="<|mask|>",
        ends=("<|im_end|>", "<|endoftext|>"),
        forbidden=FORBIDDEN,
        image="<|image_pad|>",
        around_image=VISION,
        hub={"rp-yu/Dimple-7B": "not stated"},
    )
)
