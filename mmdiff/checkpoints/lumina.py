"""Lumina-DiMOO (Alpha-VLLM/Lumina-DiMOO): LLaDA with image codes of any grid, a token behind each
row of a picture, and tags for who speaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdiff.checkpoints import llada
from mmdiff.checkpoints.base import FAMILIES, Family, Json

CODES = (126356, 8192)  # stand in the code alone, as do the ids below
NEWLINE, BOI, EOI, ANSWER, ANSWER_END = 126084, 126349, 126350, 126354, 126355
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<answer>{{ m['content'] }}</answer>"
    "{% else %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)


def rows_of(codes: Sequence[int], width: int, newline: int = NEWLINE) -> list[int]:
    """Codes row by row, each row of `width` closed by a newline."""
    made: list[int] = []
    for start in range(0, len(codes), width):
        made += [*codes[start : start + width], newline]
    return made


def config(published: Json) -> dict[str, Any]:
    """As LLaDA's. A smaller vocabulary than the published one must name its own codes:
    `model.config.codes = [first id, how many]`."""
    made = llada.text(published)
    fits = sum(CODES) <= made["text_config"]["vocab_size"]
    if fits:
        made |= {"codes": list(CODES), "vocab_used": sum(CODES)}
    return made


FAMILIES.register("lumina")(
    Family(
        title="Lumina-DiMOO",
        recognise=lambda c: llada.is_olmo(c) and llada.PICTURES in c.get("architectures", ()),
        config=config,
        keys=llada.KEYS,
        template=TEMPLATE,
        mask="<|mdm_mask|>",
        ends=("</answer>",),
        hub={"Alpha-VLLM/Lumina-DiMOO": "Apache-2.0"},
    )
)
