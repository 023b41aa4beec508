"""Lumina-DiMOO (Alpha-VLLM/Lumina-DiMOO): LLaDA with image codes of any grid, a token behind each
row of a picture, and tags for who speaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdiff.checkpoints import llada
from mmdiff.checkpoints.base import FAMILIES, Family, Json, PictureRow, Pictures, named_ids

CODES = (126356, 8192)  # stand in the code alone, as do the ids below
IDS = {"newline": 126084, "boi": 126349, "eoi": 126350, "answer": 126354, "answer_end": 126355}
NAMES = {
    "newline": "<end-of-line>",
    "boi": "<IMAGE>",
    "eoi": "</IMAGE>",
    "answer": "<answer>",
    "answer_end": "</answer>",
}
SYSTEM = "Generate an image according to the text prompt."
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<answer>{{ m['content'] }}</answer>"
    "{% else %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)


def rows_of(codes: Sequence[int], width: int, newline: int) -> list[int]:
    """Codes row by row, each row of `width` closed by a newline."""
    made: list[int] = []
    for start in range(0, len(codes), width):
        made += [*codes[start : start + width], newline]
    return made


def picture_row(processor: Any, text: str, grid: tuple[int, int]) -> PictureRow:
    """<system>..</system><user>text</user><answer> and the picture, each row closed by a newline;
    <uncondition> for the text where guidance looks away."""
    ids = named_ids(processor.tokenizer, NAMES, IDS)

    def tokens(words: str, first: bool = False) -> list[int]:
        return list(processor.tokenizer(words, add_special_tokens=first)["input_ids"])

    start = tokens(f"<system>{SYSTEM}</system><user>", first=True)
    end = [*tokens("</user>"), ids["answer"], ids["boi"]]
    return PictureRow(
        prompt=start + processor.encode(text) + end,
        negative=start + tokens("<uncondition>") + end,
        draft=rows_of([processor.mask_id] * (grid[0] * grid[1]), grid[1], ids["newline"]),
        suffix=[ids["eoi"], ids["answer_end"]],
    )


def config(published: Json) -> dict[str, Any]:
    """As LLaDA's. A smaller vocabulary than the published one must name its own codes:
    `model.config.codes = [first id, how many]`."""
    made = llada.text(published)
    fits = sum(CODES) <= made["text_config"]["vocab_size"]
    if fits:
        made |= {"codes": list(CODES), "vocab_used": sum(CODES)}
    return made


PICTURES = Pictures(
    row=picture_row,
    codec="amused",
    size=(1024, 1024),
    decoding={"preset": "lumina_image"},
)
FAMILIES.register("lumina")(
    Family(
        title="Lumina-DiMOO",
        recognise=lambda c: llada.is_olmo(c) and llada.PICTURES in c.get("architectures", ()),
        config=config,
        keys=llada.KEYS,
        template=TEMPLATE,
        mask="<|mdm_mask|>",
        ends=("</answer>",),
        pictures=PICTURES,
        hub={"Alpha-VLLM/Lumina-DiMOO": "not stated"},
    )
)
