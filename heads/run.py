"""One batch of any head: examples -> rows -> canvas -> decoding -> answers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmdiff.decoding.loop import Step, decode
from mmdiff.decoding.settings import Decoding, limited
from mmdiff.decoding.stop import answer_length
from mmdiff.errors import InputError
from mmdiff.heads.base import Example, Head
from mmdiff.processing import Row, collate, part_picture, prompt_row

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel


@dataclass
class Generation:
    """One answer. `seconds` is the wall time of its batch divided by the batch's rows."""

    text: str
    nfe: int
    seconds: float
    ids: list[int]
    length: int  # tokens up to and including the first end-of-text
    trace: list[dict[str, Any]] | None = (
        None  # one entry per step: ids, masked, accepted, probability
    )

    @property
    def tokens_per_forward(self) -> float:
        return self.length / max(1, self.nfe)

    def __str__(self) -> str:
        return self.text


def fill(
    model: MMDiffModel, task: Head, examples: list[Example], settings: Decoding
) -> list[Generation]:
    """Decode a batch of examples and read every row."""
    began = time.perf_counter()
    processor = model.processor
    assert processor is not None
    rows: list[Row] = []
    pictures: list[Any] = []
    for example in examples:
        prompt = processor.expand(processor.prompt_ids(example.messages))
        template, holes = example.template, example.holes
        if template is None or holes is None:
            template = [processor.mask_id] * settings.max_new_tokens
            holes = [True] * len(template)
        _check_length(model, len(prompt) + len(template), len(template))
        images = range(len(pictures), len(pictures) + len(example.images))
        rows.append(prompt_row(prompt, template, holes, images))
        pictures += example.images
    pixels = processor.pixels(pictures) if pictures else None
    canvas = collate(rows, processor.end_id, pixels, processor.image_token_id).to(model.device)
    if model.config.picture_apart:
        part_picture(canvas)
    if examples[0].template is not None:
        settings = limited(settings, canvas.shape[1] - canvas.prompt_length)
    filled = decode(model, canvas, settings, processor.end_id)
    answers = filled.canvas.ids[:, canvas.prompt_length :].cpu()
    lengths = answer_length(answers, processor.end_id).tolist()
    seconds = (time.perf_counter() - began) / len(rows)
    made = []
    for i, row in enumerate(rows):
        ids = answers[i, : len(row.ids) - row.prompt].tolist()
        text = task.read(processor, ids, examples[i])
        trace = row_trace(filled.trace, i, canvas.prompt_length) if settings.trace else None
        made.append(Generation(text, int(filled.nfe[i]), seconds, ids, lengths[i], trace))
    return made


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


def _check_length(model: MMDiffModel, cells: int, answer: int) -> None:
    limit = getattr(model.backbone.config, "max_position_embeddings", None)
    if limit is not None and cells > limit:
        raise InputError(
            f"the prompt takes {cells - answer} tokens and the answer {answer}, "
            f"but this model holds {limit}; shorten the text or lower max_new_tokens"
        )
