"""Requests as canvas rows, and ways to decode them, for the tests of the loop and its parts."""

import itertools

from PIL import Image

from mmdiff.decoding.choose import ORDERS
from mmdiff.decoding.loop import decode
from mmdiff.decoding.settings import make_decoding
from mmdiff.processing import collate, part_picture, prompt_row

CELLS = 6
REQUESTS = (
    ("how many circles are there?", "red"),
    ("a", "blue"),
    ("is there a green star, a blue square or a red circle?", None),
)
HOLES = [[True] * 6, [True, False, True, False, True, False], [False, False, False, False, True]]
ACCEPTS = ({"accept": "schedule", "steps": 4}, {"accept": "threshold", "threshold": 0.4})
RULES = [
    {"order": order, "temperature": temperature, "block_length": block_length, **accept}
    for order, accept, temperature, block_length in itertools.product(
        ORDERS.names(), ACCEPTS, (0.0, 1.0), (None, 4)
    )
]


def make_row(processor, request, colour, holes=None, template=None):
    """One row and its picture: `holes` of the answer region are to be filled."""
    parts = [{"type": "image"}] * (colour is not None) + [{"type": "text", "text": request}]
    prompt = processor.expand(processor.prompt_ids([{"role": "user", "content": parts}]))
    holes = holes or [True] * CELLS
    given = template or [processor.mask_id if hole else 20 + i for i, hole in enumerate(holes)]
    return prompt_row(prompt, given, holes), colour


def batch(model, *rows):
    """A canvas of `make_row` rows; pictures are plain colours."""
    processor, pictures, made = model.processor, [], []
    for row, colour in rows:
        row.images = []
        if colour is not None:
            row.images = [len(pictures)]
            pictures.append(Image.new("RGB", (32, 32), colour))
        made.append(row)
    pixels = processor.pixels(pictures) if pictures else None
    canvas = collate(made, processor.end_id, pixels, processor.image_token_id)
    if model.config.picture_apart:
        part_picture(canvas)
    return canvas


def fill(model, *rows, **settings):
    settings = make_decoding({"max_new_tokens": CELLS, "stop": "none"}, settings)
    canvas = batch(model, *rows)
    return decode(model, canvas, settings, model.processor.end_id)


def answers(filled):
    return filled.canvas.ids[:, filled.canvas.prompt_length :].tolist()


def requests(model):
    return [make_row(model.processor, *request) for request in REQUESTS]
