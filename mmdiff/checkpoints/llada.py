"""LLaDA (ML-GSAI/LLaDA): base, instruct and 1.5. An OLMo-style layout of a Llama.

Renamed, the weights are a transformers Llama bit for bit: same half-split rotation, no biases.
"""

from __future__ import annotations

from typing import Any

from mmdiff.checkpoints.base import FAMILIES, Family, Json, need, refuse

ROWS = {126464: 126349}  # rows of the published table -> rows that its tokenizer uses
MASK = 126336
PICTURES = "LLaDAForMultiModalGeneration"  # the class of a LLaDA with image codes, Lumina-DiMOO
FIXED = {  # the one variant of the OLMo network that LLaDA is
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "alibi": False,
    "rope": True,
    "include_bias": False,
    "include_qkv_bias": False,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "scale_logits": False,
}
TEMPLATE = (
    "<|startoftext|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PROMPT: dict[str, Any] = {"template": TEMPLATE, "mask": "<|mdm_mask|>", "ends": ("<|eot_id|>",)}
LAYER = "model.transformer.blocks.{}."
OURS = "backbone.layers.{}."
KEYS = (
    ("model.transformer.wte.", "backbone.embed_tokens."),
    (LAYER + "attn_norm.", OURS + "input_layernorm."),
    (LAYER + "ff_norm.", OURS + "post_attention_layernorm."),
    (LAYER + "q_proj.", OURS + "self_attn.q_proj."),
    (LAYER + "k_proj.", OURS + "self_attn.k_proj."),
    (LAYER + "v_proj.", OURS + "self_attn.v_proj."),
    (LAYER + "attn_out.", OURS + "self_attn.o_proj."),
    (LAYER + "ff_proj.", OURS + "mlp.gate_proj."),
    (LAYER + "up_proj.", OURS + "mlp.up_proj."),
    (LAYER + "ff_out.", OURS + "mlp.down_proj."),
    ("model.transformer.ln_f.", "backbone.norm."),
    ("model.transformer.ff_out.", "lm_head."),
)


def is_olmo(config: Json) -> bool:
    return config.get("model_type") == "llada" and "d_model" in config


def text(config: Json) -> dict[str, Any]:
    """Arguments of `MMDiffConfig` for the backbone, its ids and LLaDA's sampler."""
    refuse(config, FIXED)
    width, layers, heads, rows = need(config, "d_model", "n_layers", "n_heads", "vocab_size")
    rows = config.get("embedding_size") or rows
    backbone = {
        "model_type": "llama",
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": need(config, "mlp_hidden_size")[0],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("n_kv_heads") or heads,
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "rope_theta": config.get("rope_theta", 10000.0),
        "max_position_embeddings": config.get("max_sequence_length", 4096),
    }
    return {
        "text_config": backbone,
        "attention_layout": "full",
        "mask_token_id": config.get("mask_token_id", MASK),
        "eos_token_id": config.get("eos_token_id"),
        "pad_token_id": config.get("pad_token_id"),
        "vocab_used": ROWS.get(rows),
        "tie_word_embeddings": bool(config.get("weight_tying", False)),
        "decoding": {"max_new_tokens": 128},
    }


FAMILIES.register("llada")(
    Family(
        title="LLaDA",
        recognise=lambda c: is_olmo(c) and PICTURES not in c.get("architectures", ()),
        config=text,
        keys=KEYS,
        **PROMPT,
        hub={
            "GSAI-ML/LLaDA-8B-Base": "MIT",
            "GSAI-ML/LLaDA-8B-Instruct": "MIT",
            "GSAI-ML/LLaDA-1.5": "MIT",
        },
    )
)
