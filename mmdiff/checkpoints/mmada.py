"""MMaDA (Gen-Verse/MMaDA): a LLaDA whose vocabulary goes on with the codes of pictures.

Rows are packed as in its `training/prompting_utils.py`. The tokens around pictures are reserved ids
of LLaDA's vocabulary, which its tokenizer has no names for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
    need,
    parts_of,
)
from mmdiff.checkpoints.llada import KEYS, PROMPT, ROWS, TEMPLATE
from mmdiff.encoders.codes.frames import square
from mmdiff.errors import CheckpointError, InputError
from mmdiff.processing import PLACEHOLDER

NO_LABEL = -100
SIDE = 512  # pixels of a picture, painted or read


@dataclass(frozen=True)
class Ids:
    """The ids that rows are packed with."""

    bos: int = 126080
    eos: int = 126081
    soi: int = 126084  # a picture begins
    eoi: int = 126085  # and ends
    t2i: int = 126088  # the tasks: text to image,
    mmu: int = 126089  # image to text,
    r2i: int = 126094  # reasoning, then image
    pad: int = 126093
    end_header: int = 126347


NAMES = {name: f"<|{name}|>" for name in ("soi", "eoi", "t2i", "mmu", "r2i")}
NAMES |= {"bos": "<|startoftext|>", "eos": "<|endoftext|>", "end_header": "<|end_header_id|>"}


@dataclass(frozen=True)
class Packed:
    """One row: ids; what the network may see (text to image) or what is prompt (other tasks), as
    0 and 1; labels, NO_LABEL where there is none."""

    ids: list[int]
    mask: list[int]
    labels: list[int]


def text_to_image(text: Sequence[int], codes: Sequence[int], length: int, ids: Ids) -> Packed:
    """pad.. <t2i> bos text eos <soi> codes <eoi>, with `length` + 1 cells before <soi>. Empty text
    is the condition dropped: guidance compares with it."""
    head = [ids.t2i, *closed(text, ids)]
    if len(head) > length + 1:
        head = [*head[:length], ids.eos]
    empty = length + 1 - len(head)
    row = [*head, ids.soi, *codes, ids.eoi]
    seen = [0] * empty + [1] * len(row)
    return Packed([ids.pad] * empty + row, seen, [NO_LABEL] * empty + row)


def language(text: Sequence[int], length: int, ids: Ids) -> Packed:
    """bos text eos eos.., cut at `length` even before its eos. The prompt of a chat reaches to the
    last end of a header."""
    row = filled(closed(text, ids)[:length], length, ids)
    return Packed(row, prompt_mask(row, ids, otherwise=0), row)


def image_to_text(codes: Sequence[int], text: Sequence[int], length: int, ids: Ids) -> Packed:
    """<mmu> <soi> codes <eoi> bos text eos eos.., the text in `length` cells."""
    picture = [ids.mmu, ids.soi, *codes, ids.eoi]
    words = answer(text, length, ids)
    mask = [1] * len(picture) + prompt_mask(words, ids, otherwise=0)
    return Packed(picture + words, mask, [NO_LABEL] * len(picture) + words)


def reasoning_to_image(text: Sequence[int], codes: Sequence[int], length: int, ids: Ids) -> Packed:
    """<r2i> bos text eos eos.. <soi> codes <eoi>, the text in `length` cells; text without a header
    is prompt."""
    words = answer(text, length, ids)
    row = [ids.r2i, *words, ids.soi, *codes, ids.eoi]
    mask = [1, *prompt_mask(words, ids, otherwise=1), 1, *[0] * len(codes), 1]
    return Packed(row, mask, row)


def closed(text: Sequence[int], ids: Ids) -> list[int]:
    return [*([] if text and text[0] == ids.bos else [ids.bos]), *text, ids.eos]


def filled(text: list[int], length: int, ids: Ids) -> list[int]:
    return text + [ids.eos] * (length - len(text))


def answer(text: Sequence[int], length: int, ids: Ids) -> list[int]:
    """bos text eos eos.. of `length` cells; a longer one keeps its eos."""
    words = closed(text, ids)
    return filled(words, length, ids) if len(words) <= length else [*words[: length - 1], ids.eos]


def prompt_mask(text: list[int], ids: Ids, otherwise: int) -> list[int]:
    """1 up to the last end of a header; `otherwise` everywhere where there is none."""
    if ids.end_header not in text:
        return [otherwise] * len(text)
    size = len(text) - text[::-1].index(ids.end_header)
    return [1] * size + [0] * (len(text) - size)


def picture_row(processor: Any, text: str, grid: tuple[int, int]) -> PictureRow:
    """<t2i> bos text eos <soi>, the cells, <eoi>; without the text where guidance looks away."""
    ids = ids_of(processor)
    words = [ids.t2i, *closed(processor.encode(text), ids), ids.soi]
    empty = [ids.t2i, *closed([], ids), ids.soi]
    return PictureRow(words, empty, [processor.mask_id] * (grid[0] * grid[1]), [ids.eoi])


def ids_of(processor: Any) -> Ids:
    """The ids of a processor's own tokenizer, the published ones where that has no such token."""
    return Ids(**named_ids(processor.tokenizer, NAMES, asdict(Ids())))


def picture_cells(processor: Any, codes: list[int], width: int, compat: str | None) -> list[int]:
    """<soi> codes <eoi>, whatever the `width`; the published code is followed in any case."""
    ids = ids_of(processor)
    return [ids.soi, *codes, ids.eoi]


def ask(processor: Any, messages: Sequence[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """<mmu>, the picture, then the conversation (`inference_mmu.py`); InputError for more than one
    picture."""
    said = [(message, parts_of(message)) for message in messages]
    count = sum(is_picture(part) for _, parts in said for part in parts)
    words = [{**m, "content": [p for p in parts if not is_picture(p)]} for m, parts in said]
    if count > 1:
        raise InputError(f"MMaDA reads one picture, got {count}; ask about each by itself")
    picture = [ids_of(processor).mmu, PLACEHOLDER] if count else []
    return picture + processor.prompt_ids(words), []


def config(published: Json) -> dict[str, Any]:
    made = llada.text(published)
    words, count = need(published, "llm_vocab_size", "codebook_size")
    first = ROWS.get(words, words)  # codes follow the tokenizer's own words, not the table's rows
    rows = made["text_config"]["vocab_size"]
    if first + count > rows:
        raise CheckpointError(
            f"config.json: {count} image codes from id {first} do not fit {rows} rows"
        )
    return made | {"codes": [first, count], "vocab_used": first + count}


PICTURES = Pictures(
    codec="magvit",
    folder="magvitv2",
    published="showlab/magvitv2",
    row=picture_row,
    size=(SIDE, SIDE),
    decoding={"preset": "mmada_image"},
    crop=lambda picture, count: square(picture, SIDE),
    cells=picture_cells,
    ask=ask,
)
FAMILIES.register("mmada")(
    Family(
        title="MMaDA",
        recognise=lambda c: c.get("model_type") == "mmada",
        config=config,
        keys=KEYS,
        **PROMPT | {"template": TEMPLATE.replace("\n\n", "\n")},
        pictures=PICTURES,
        hub={f"Gen-Verse/MMaDA-8B-{kind}": "not stated" for kind in ("Base", "MixCoT")},
    )
)
