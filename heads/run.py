"""One batch of any head: examples -> rows -> canvas -> decoding -> answers."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mmdiff import positions
from mmdiff.decoding.loop import Step, decode
from mmdiff.decoding.settings import Decoding, limited, with_seed
from mmdiff.decoding.stop import answer_length
from mmdiff.errors import InputError
from mmdiff.heads.base import Example, Head
from mmdiff.processing import Row, collate, part_picture, prompt_row, turn_blocks

if TYPE_CHECKING:
    from mmdiff.canvas import Canvas
    from mmdiff.model import MMDiffModel
    from mmdiff.processing import Processor


@dataclass
class Generation:
    """One answer. `seconds` is the wall time of its batch divided by the batch's rows."""

    text: str
    nfe: int
    seconds: float
    ids: list[int]
    length: int  # tokens up to and including the first end-of-text
    # One entry per step: ids, masked, accepted and probability of the answer region.
    trace: list[dict[str, Any]] | None = None
    outside: float = 0.0  # share of the decoding loop's wall time spent outside the model

    @property
    def tokens_per_forward(self) -> float:
        return self.length / max(1, self.nfe)

    def __str__(self) -> str:
        return self.text


def fill(
    model: MMDiffModel, task: Head, examples: list[Example], settings: Decoding
) -> list[Generation]:
    """Decode a batch of examples and read every row.

    Rows with answer regions of different size are decoded apart: `steps` are split over the region.
    """
    seeds = with_seed(settings, len(examples))
    sizes = [len(e.template or ()) or settings.max_new_tokens for e in examples]
    made: dict[int, Generation] = {}
    for size in sorted(set(sizes)):
        members = [i for i, n in enumerate(sizes) if n == size]
        own = replace(limited(settings, size), seed=tuple(seeds[i] for i in members))
        filled = _fill(model, task, [examples[i] for i in members], own)
        made.update(zip(members, filled, strict=True))
    return [made[i] for i in range(len(examples))]


def _fill(
    model: MMDiffModel, task: Head, examples: list[Example], settings: Decoding
) -> list[Generation]:
    """As `fill`, for answer regions of one size."""
    began = time.perf_counter()
    processor = model.processor
    assert processor is not None
    canvas = compose_canvas(model, processor, examples, settings.max_new_tokens)
    settings = replace(settings, stop_ids=(*processor.end_ids[1:], *settings.stop_ids))
    filled = decode(model, canvas, settings, processor.end_id)
    start = canvas.prompt_length
    answers = filled.canvas.ids[:, start:].cpu()
    lengths = answer_length(answers, processor.end_ids).tolist()
    seconds = (time.perf_counter() - began) / len(examples)
    return [
        Generation(
            text=task.read(processor, ids, examples[i]),
            nfe=int(filled.nfe[i]),
            seconds=seconds,
            ids=ids,
            length=lengths[i],
            trace=row_trace(filled.trace, i, start) if settings.trace else None,
            outside=1 - filled.inside / filled.seconds,
        )
        for i, ids in enumerate(answers.tolist())
    ]


def compose_canvas(
    model: MMDiffModel, processor: Processor, examples: list[Example], cells: int
) -> Canvas:
    """The canvas of examples whose answer regions have `cells` cells, on the model's device."""
    longest = getattr(model.backbone.config, "max_position_embeddings", None)
    rows: list[Row] = []
    pictures: dict[int, Any] = {}  # by identity: one shown to several rows is encoded once
    for example in examples:
        sizes = [image.size for image in example.images]
        prompt = processor.expand(processor.prompt_ids(example.messages), sizes)
        template, holes = example.template, example.holes
        if template is None or holes is None:
            template, holes = [processor.mask_id] * cells, [True] * cells
        check_length(longest, len(prompt), cells)
        pictures.update({id(image): image for image in example.images})
        numbers = list(pictures)
        images = [numbers.index(id(image)) for image in example.images]
        row = prompt_row(prompt, template, holes, images)
        if model.config.turn_causal:
            ends = processor.turn_ends(prompt, example.messages, sizes)
            row.block[: row.prompt] = turn_blocks(prompt, ends, processor.image_token_id)
        rows.append(row)
    pixels, blocks = processor.read(list(pictures.values())) if pictures else (None, None)
    canvas = collate(rows, processor.end_id, pixels, processor.image_token_id, blocks=blocks).to(
        model.device
    )
    if model.config.picture_apart and not model.config.turn_causal:
        part_picture(canvas)
    if model.three_axes:
        canvas.position = positions.of_canvas(canvas)
    return canvas


def row_trace(steps: list[Step], row: int, start: int) -> list[dict[str, Any]]:
    """The answer region of one row at every step it took part in."""
    entries = []
    for step in steps:
        place = (step.rows == row).nonzero()
        if len(place):
            i = int(place[0, 0])
            entries.append(
                {
                    "ids": step.ids[i, start:].tolist(),
                    "masked": step.masked[i, start:].tolist(),
                    "accepted": step.accepted[i, start:].tolist(),
                    "probability": step.probability[i, start:].tolist(),
                }
            )
    return entries


def check_length(limit: int | None, prompt: int, answer: int) -> None:
    """InputError where prompt and answer take more cells than a model holds."""
    if limit is not None and prompt + answer > limit:
        raise InputError(
            f"the prompt takes {prompt} tokens and the answer {answer}, "
            f"but this model holds {limit}; shorten the text or lower max_new_tokens"
        )
