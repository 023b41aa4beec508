"""LLaDA-V (ML-GSAI/LLaDA-V): LLaDA under Llama's own names, SigLIP 2, unpooled tiles."""

from __future__ import annotations

from typing import Any

from mmdiff.checkpoints import dream, llada, llava
from mmdiff.checkpoints.base import FAMILIES, Family, Json

# The published sampler never writes these; answers end with <|eot_id|>.
FORBIDDEN = ("<|startoftext|>", "<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>")


def text(published: Json) -> dict[str, Any]:
    """Arguments of `MMDiffConfig` for the backbone. The mask id stands in the code alone, so a
    vocabulary of another size must name its own."""
    made = dream.text({"use_sliding_window": False, **published})
    backbone = made["text_config"] | {"model_type": "llama"}
    return made | {
        "text_config": backbone,
        "shift": False,
        "vocab_used": llada.ROWS.get(backbone["vocab_size"]),
        "mask_token_id": published.get("mask_token_id", llada.MASK),
        "decoding": {"max_new_tokens": 128},
    }


def config(published: Json) -> dict[str, Any]:
    return text(published) | llava.vision(published, pooled=False)


FAMILIES.register("llada-v")(
    Family(
        title="LLaDA-V",
        recognise=lambda c: c.get("model_type") == "llava_llada" and "d_model" not in c,
        config=config,
        keys=(*llava.KEYS, *dream.KEYS),
        **llada.PROMPT,
        **llava.PICTURES,
        forbidden=FORBIDDEN,
        hub={"GSAI-ML/LLaDA-V": "MIT"},
    )
)
