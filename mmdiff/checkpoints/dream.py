"""Dream (DreamLM/Dream): a Qwen2 whose logits of row i - 1 score cell i."""

from __future__ import annotations

from typing import Any

from mmdiff.checkpoints.base import FAMILIES, Family, Json, need, refuse

ROWS = {152064: 151667, 151936: 151667}  # table rows -> rows that the tokenizer uses
MASK = 151666
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPT: dict[str, Any] = {"template": TEMPLATE, "mask": "<|mask|>", "ends": ("<|im_end|>",)}
KEYS = (("model.", "backbone."), ("lm_head.", "lm_head."))
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


def text(config: Json) -> dict[str, Any]:
    """Arguments of `MMDiffConfig` for the backbone, its ids and Dream's sampler."""
    refuse(config, {"use_sliding_window": False, "rope_scaling": None, "hidden_act": "silu"})
    backbone = dict(zip(SIZES, need(config, *SIZES), strict=True))
    backbone |= {
        "model_type": "qwen2",
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_theta": config.get("rope_theta", 1e6),
        "max_position_embeddings": config.get("max_position_embeddings", 131072),
    }
    return {
        "text_config": backbone,
        "attention_layout": "full",
        "shift": True,
        "mask_token_id": config.get("mask_token_id", MASK),
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_id": config.get("eos_token_id"),
        "pad_token_id": config.get("pad_token_id"),
        "vocab_used": ROWS.get(backbone["vocab_size"]),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "decoding": {"max_new_tokens": 128, "order": "entropy"},
    }


FAMILIES.register("dream")(
    Family(
        title="Dream",
        recognise=lambda config: config.get("model_type") == "Dream",
        config=text,
        keys=KEYS,
        **PROMPT,
        hub={
            "Dream-org/Dream-v0-Base-7B": "Apache-2.0",
            "Dream-org/Dream-v0-Instruct-7B": "Apache-2.0",
        },
    )
)
