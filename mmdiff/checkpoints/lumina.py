"""Lumina-DiMOO (Alpha-VLLM/Lumina-DiMOO): LLaDA with image codes of any grid, a token behind each
row of a picture, and tags for who speaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdiff.checkpoints import llada
from mmdiff.checkpoints.base import (
    FAMILIES,
    Family,
    Json,
    PictureRow,
    Pictures,
    is_picture,
    named_ids,
    parts_of,
)
from mmdiff.encoders.codes.frames import fitted

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
LOOK = (
    "You are a multimodal model that can process both text and images. Answer the following "
    "question based on the provided images. Analyze each image and combine relevant details to "
    "answer."
)
ALONE, AMONG = 1024, 512  # sides of squares with about the pixels that are read of a picture
LENGTH = 8192  # the published code knows no limit; a picture and its answer pass LLaDA's 4,096
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


def picture_cells(processor: Any, codes: list[int], width: int, compat: str | None) -> list[int]:
    """<IMAGE>, the rows of the picture, each closed by a newline, </IMAGE>. With compat=lumina as
    `inference_mmu.py` has it: that is cut into rows once more, and only so many cells are kept as
    there are codes."""
    ids = named_ids(processor.tokenizer, NAMES, IDS)
    picture = [ids["boi"], *rows_of(codes, width, ids["newline"]), ids["eoi"]]
    return rows_of(picture[: len(codes)], width, ids["newline"]) if compat == "lumina" else picture


def ask(processor: Any, messages: Sequence[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """<system>..</system><user>text, pictures</user><answer>, and </answer> behind the answer
    (`inference_mmu.py`); pictures of several turns stand behind the text of their own. Without any,
    the system says nothing."""
    ordered = [{**m, "content": sorted(parts_of(m), key=is_picture)} for m in messages]
    pictures = any(is_picture(part) for message in ordered for part in message["content"])
    if pictures and messages[0]["role"] != "system":
        ordered = [{"role": "system", "content": LOOK}, *ordered]
    return processor.prompt_ids(ordered), [named_ids(processor.tokenizer, NAMES, IDS)["answer_end"]]


def config(published: Json) -> dict[str, Any]:
    """As LLaDA's. A smaller vocabulary than the published one must name its own codes:
    `model.config.codes = [first id, how many]`."""
    made = llada.text(published)
    backbone = made["text_config"]
    backbone["max_position_embeddings"] = max(backbone["max_position_embeddings"], LENGTH)
    fits = sum(CODES) <= backbone["vocab_size"]
    if fits:
        made |= {"codes": list(CODES), "vocab_used": sum(CODES)}
    return made


PICTURES = Pictures(
    codec="amused",
    folder="vqvae",
    published="Alpha-VLLM/Lumina-DiMOO/vqvae",
    row=picture_row,
    size=(1024, 1024),
    decoding={"preset": "lumina_image"},
    crop=lambda picture, count: fitted(picture, ALONE if count == 1 else AMONG),
    cells=picture_cells,
    ask=ask,
)
FAMILIES.register("lumina")(
    Family(
        title="Lumina-DiMOO",
        recognise=lambda c: llada.is_olmo(c) and llada.PICTURES in c.get("architectures", ()),
        config=config,
        keys=llada.KEYS,
        template=TEMPLATE,
        fixed_template=True,
        mask="<|mdm_mask|>",
        ends=("</answer>",),
        pictures=PICTURES,
        hub={"Alpha-VLLM/Lumina-DiMOO": "not stated"},
    )
)
