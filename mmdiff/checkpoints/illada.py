"""iLLaDA (ML-GSAI, arXiv:2606.25331): a Llama under transformers' own names, its tables tied.

The sampler is LLaDA's (ML-GSAI/LLaDA, README.md: mask id 5). Prompts are written by the folder's
own chat template alone.
"""

from __future__ import annotations

from typing import Any

from mmdiff.checkpoints.base import FAMILIES, Family, Json, need, refuse
from mmdiff.checkpoints.dream import SIZES

MASK = 5  # config.json does not name it
FIXED = {  # the one variant of the published network that a Llama is
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "layer_norm_eps": None,
    "rope_scaling": None,
    "tie_word_embeddings": True,
}
OTHERS = ("rms_norm_eps", "rope_theta", "max_position_embeddings")


def text(config: Json) -> dict[str, Any]:
    """Arguments of `MMDiffConfig` for the backbone, its ids and LLaDA's sampler."""
    refuse(config, FIXED)
    names = (*SIZES, *OTHERS)
    backbone = dict(zip(names, need(config, *names), strict=True))
    return {
        "text_config": {"model_type": "llama", **backbone},
        "attention_layout": "full",
        "mask_token_id": config.get("mask_token_id", MASK),
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_id": config.get("eos_token_id"),
        "pad_token_id": config.get("pad_token_id"),
        "tie_word_embeddings": True,
        "decoding": {"max_new_tokens": 128},
    }


FAMILIES.register("illada")(
    Family(
        title="iLLaDA",
        recognise=lambda c: "ILLaDAForCausalLM" in (c.get("architectures") or ()),
        config=text,
        keys=(("model.", "backbone."),),
        unused=("lm_head.",),  # where a file holds the tied table twice
        mask="<[MASK]>",
        hub={f"GSAI-ML/iLLaDA-8B-{kind}": "Apache-2.0" for kind in ("Base", "Instruct")},
    )
)
