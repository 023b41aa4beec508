"""LaViDa (jacklishufan/LaViDa): LLaDA or Dream with pictures; tiles pooled 2 x 2."""

from __future__ import annotations

from typing import Any

from mmdiff.checkpoints import dream, llada, llava
from mmdiff.checkpoints.base import FAMILIES, Family, Json

HUB = {
    "jacklishufan/lavida-llada-v1.0-instruct": "not stated",
    "jacklishufan/lavida-dream-v1.0-instruct": "not stated",
}


def with_llada(config: Json) -> dict[str, Any]:
    return llada.text(config) | llava.vision(config, pooled=True)


def with_dream(config: Json) -> dict[str, Any]:
    return dream.text(config) | llava.vision(config, pooled=True)


FAMILIES.register("lavida-llada")(
    Family(
        title="LaViDa (LLaDA)",
        # LLaDA-V has the same model_type; LaViDa kept LLaDA's own names for sizes.
        recognise=lambda c: c.get("model_type") == "llava_llada" and "d_model" in c,
        config=with_llada,
        keys=(*llava.KEYS, *llada.KEYS),
        **llada.PROMPT,
        **llava.PICTURES,
        hub={k: v for k, v in HUB.items() if "llada" in k},
    )
)
FAMILIES.register("lavida-dream")(
    Family(
        title="LaViDa (Dream)",
        recognise=lambda c: c.get("model_type") == "llava_dream",
        config=with_dream,
        keys=(*llava.KEYS, *dream.KEYS),
        **dream.PROMPT,
        **llava.PICTURES,
        hub={k: v for k, v in HUB.items() if "dream" in k},
    )
)
