"""SDAR (JetAstra/SDAR) and SDAR-VL (JetAstra/SDAR-VL): a block-causal Qwen3, alone or with SigLIP.

Attention is causal over blocks of `block_size` cells, counted from the row's first cell, and full
inside one. SDAR-VL has the layout of transformers' LLaVA-OneVision with tiles as there.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from mmdiff.checkpoints import dream
from mmdiff.checkpoints.base import FAMILIES, Family, Json, need, refuse
from mmdiff.encoders.vision.tiles import Tiling
from mmdiff.errors import CheckpointError

ROWS = {151936: 151670}  # rows of the published table -> rows that its tokenizer uses
MASK = 151669
BLOCK = 4
PROMPT: dict[str, Any] = dream.PROMPT | {"mask": "<|MASK|>"}
TOWER = "vision_tower.vision_model."
KEYS = (
    (TOWER, "vision.net."),
    ("multi_modal_projector.linear_1.", "projector.layers.0."),
    ("multi_modal_projector.linear_2.", "projector.layers.2."),
    ("image_newline", "image_newline"),
    ("language_model.model.", "backbone."),
    ("language_model.lm_head.", "lm_head."),
)
PICTURES = {  # the one variant of LLaVA-OneVision that SDAR-VL is
    "multimodal_projector_bias": True,
    "projector_hidden_act": "gelu",
    "use_image_newline_parameter": True,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}


def text(config: Json) -> dict[str, Any]:
    """Arguments of `MMDiffConfig` for the backbone, its ids and SDAR's sampler."""
    refuse(config, {"attention_bias": False})
    made = dream.text(config)
    block = config.get("block_size") or BLOCK
    heads = {"model_type": "qwen3", "head_dim": config.get("head_dim", 128)}
    backbone = made["text_config"] | heads
    return made | {
        "text_config": backbone,
        "attention_layout": "block",
        "block_size": block,
        "shift": False,
        "mask_token_id": config.get("mask_token_id", MASK),
        "vocab_used": ROWS.get(backbone["vocab_size"]),
        "decoding": {
            "max_new_tokens": 128,
            "block_length": block,
            "schedule": "rate",
            "accept": "dynamic",
            "threshold": 0.9,
        },
    }


def with_pictures(config: Json) -> dict[str, Any]:
    refuse(config, PICTURES)
    language, tower, image = need(config, "text_config", "vision_config", "image_token_index")
    tied = {"tie_word_embeddings": config.get("tie_word_embeddings", False)}
    return text(tied | language) | vision(config, dict(tower)) | {"image_token_id": image}


def vision(config: Json, tower: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `MMDiffConfig` for the picture side. Pinpoints are published as (height, width);
    CheckpointError for an aspect ratio without a limit."""
    aspect, points = need(config, "vision_aspect_ratio", "image_grid_pinpoints")
    limit = re.fullmatch(r"anyres_max_([1-9]\d*)", str(aspect))
    if limit is None:
        raise CheckpointError(f"config.json: vision_aspect_ratio {aspect!r} is not anyres_max_N")
    side = tower["image_size"]
    # All layers without the final norm: -2 of one layer more.
    tower["num_hidden_layers"] += 1
    spec = {
        "source": "transformers",
        "model_type": tower.pop("model_type", "siglip_vision_model"),
        "config": {k: v for k, v in tower.items() if k not in ("torch_dtype", "dtype")},
        "select_layer": -2,
        "image_size": side,
    }
    tiling = Tiling(
        side,
        aspect="anyres",
        pinpoints=tuple((width, height) for height, width in points),
        max_tiles=int(limit.group(1)),
        unpad=True,
        rounded=True,
        newline=True,
    )
    return {
        "vision_config": spec,
        "projector": {"kind": "mlp2x_gelu"},
        "tiling": asdict(tiling),
    }


FAMILIES.register("sdar")(
    Family(
        title="SDAR",
        recognise=lambda config: config.get("model_type") == "sdar",
        config=text,
        keys=dream.KEYS,
        **PROMPT,
        hub={f"JetLM/SDAR-{size}-Chat": "not stated" for size in ("1.7B", "4B", "8B")},
    )
)
FAMILIES.register("sdar-vl")(
    Family(
        title="SDAR-VL",
        recognise=lambda config: config.get("model_type") == "sdar_v",
        config=with_pictures,
        keys=KEYS,
        unused=(TOWER + "post_layernorm.", TOWER + "head."),
        **PROMPT,
        forbidden=("<|image_pad|>", "<|video_pad|>"),
        hub={"JetLM/SDAR-VL-Think-8B": "not stated"},
    )
)
