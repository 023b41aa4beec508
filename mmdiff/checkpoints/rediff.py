"""LLaDA under Llama's own names without pictures: LLaDA-V's and ReDiff's language model alone.

ReDiff (jiyt17/ReDiff) itself has LLaDA-V's layout and opens as `llada-v`; decode it with
remask=revise.
"""

from __future__ import annotations

from typing import Any

from mmdiff.checkpoints import dream, llada, llada_v
from mmdiff.checkpoints.base import FAMILIES, Family, Json


def config(published: Json) -> dict[str, Any]:
    return llada_v.text(published) | {"decoding": {"max_new_tokens": 128, "remask": "revise"}}


FAMILIES.register("rediff")(
    Family(
        title="ReDiff (text)",
        recognise=lambda c: c.get("model_type") == "llada" and "d_model" not in c,
        config=config,
        keys=dream.KEYS,
        **llada.PROMPT,
        forbidden=llada_v.FORBIDDEN,
    )
)
