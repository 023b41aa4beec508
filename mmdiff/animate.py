"""Draw how an answer fills up: the picture on the left, the canvas's cells on the right.

Masked cells are grey blocks, cells that the step decided are highlighted, and cells behind the
first end-of-text vanish. Reading order: `animate`, `Scene`, then the helpers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from mmdiff.errors import InputError, SettingError

if TYPE_CHECKING:
    from mmdiff.processing import Processor

FORMATS = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}
MAX_CELLS, MAX_FRAMES = 256, 120  # of a longer answer the beginning, and every n-th step, is drawn
TOTAL_MS, LAST_MS = 6000, 2000  # the steps share TOTAL_MS; the last frame is held for LAST_MS
SHORTEST_MS, LONGEST_MS = 80, 400

# Pixels of a drawing for screens with twice the density.
MARGIN, PICTURE, COLUMN = 40, 440, 720
ROW, GAP, PAD, FONT, RADIUS = 48, 10, 12, 26, 8

PAPER, INK, SOFT, LINE = "#fbfaf7", "#23272f", "#7a808c", "#dcdad3"
MASKED, FRESH, SETTLED = "#d3d6dc", "#ffd166", "#ffffff"


def check_target(path: str | Path) -> Path:
    """`path`, or a SettingError: an unknown suffix, or a folder that is missing or read-only.

    Call it before decoding, so that no work is lost.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise SettingError(f"{path}: an animation ends in {', '.join(FORMATS)}; rename it")
    if not path.parent.is_dir():
        raise SettingError(f"{path}: the folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise SettingError(f"{path}: is a folder; give the name of a file")
    if not os.access(path.parent, os.W_OK):
        raise SettingError(f"{path}: the folder {path.parent} may not be written to")
    return path


def animate(
    picture: Image.Image,
    trace: list[dict[str, Any]],
    processor: Processor,
    path: str | Path,
) -> Path:
    """Write the animation of one answer.

    Args:
        picture: what was asked about.
        trace: `Generation.trace` of a call with trace=True; one entry per step with `ids`,
            `masked` and `accepted` of the answer region.
        processor: the model's, whose tokenizer names the cells.
        path: ends in .gif, .webp or .png.

    Raises:
        SettingError: the file cannot be written. InputError: the trace is empty.
    """
    path = check_target(path)
    if not trace:
        raise InputError("there is no trace to draw; ask for the answer with trace=true")
    scene = Scene(picture, trace, processor)
    frames = list(scene.frames())
    pause = max(SHORTEST_MS, min(LONGEST_MS, TOTAL_MS // len(frames))) // 10 * 10
    pauses = [pause] * (len(frames) - 1) + [LAST_MS]
    if path.suffix.lower() == ".gif":
        frames = with_one_palette(frames)
    write(frames, pauses, path)
    return path


class Scene:
    """Where everything stands; it does not move between frames."""

    def __init__(
        self, picture: Image.Image, trace: list[dict[str, Any]], processor: Processor
    ) -> None:
        self.trace, self.end_id = trace, processor.end_id
        self.font = ImageFont.load_default(FONT)
        self.picture = picture.convert("RGB")
        scale = PICTURE / max(picture.size)
        width, height = (max(1, round(side * scale)) for side in picture.size)
        self.picture = self.picture.resize((width, height), Image.Resampling.LANCZOS)
        self.cells = min(len(trace[0]["ids"]), MAX_CELLS)
        self.name = partial(_name, processor=processor)
        self.boxes = self._boxes()
        below = max(MARGIN + self.picture.height, self.boxes[-1][3]) + MARGIN
        self.size = (3 * MARGIN + PICTURE + COLUMN, below + ROW)

    def _boxes(self) -> list[tuple[int, int, int, int]]:
        """A box per cell, wide enough for every token it ever holds, wrapped in lines."""
        boxes = []
        left = x = 2 * MARGIN + PICTURE
        y = MARGIN
        for cell in range(self.cells):
            tokens = {step["ids"][cell] for step in self.trace if not step["masked"][cell]}
            widest = max((self.font.getlength(self.name(token)) for token in tokens), default=0)
            width = min(COLUMN, max(ROW, round(widest) + 2 * PAD))
            if x + width > left + COLUMN:
                x, y = left, y + ROW + GAP
            boxes.append((x, y, x + width, y + ROW))
            x += width + GAP
        return boxes

    def frames(self) -> Iterator[Image.Image]:
        """The untouched canvas, then the canvas after each drawn step."""
        yield self.frame(self._untouched(), 0)
        total = len(self.trace)
        stride = -(-total // MAX_FRAMES)
        for number in range(1, total + 1):
            if number % stride == 0 or number == total:
                yield self.frame(self.trace[number - 1], number)

    def _untouched(self) -> dict[str, Any]:
        """The canvas before the first step; words of a template stand there already."""
        first = self.trace[0]
        behind = self._first_end(first)
        masked = [
            hidden or fresh or cell > behind
            for cell, (hidden, fresh) in enumerate(
                zip(first["masked"], first["accepted"], strict=True)
            )
        ]
        return {**first, "masked": masked, "accepted": [False] * len(masked)}

    def _first_end(self, step: dict[str, Any]) -> int:
        """The cell of the first decided end-of-text, or the number of cells."""
        ends = (
            i == self.end_id and not m for i, m in zip(step["ids"], step["masked"], strict=True)
        )
        return next((cell for cell, end in enumerate(ends) if end), len(step["ids"]))

    def frame(self, step: dict[str, Any], number: int) -> Image.Image:
        image = Image.new("RGB", self.size, PAPER)
        draw = ImageDraw.Draw(image)
        image.paste(self.picture, (MARGIN, MARGIN))
        end = self._first_end(step)
        for cell, box in enumerate(self.boxes):
            if cell > end:
                draw.rounded_rectangle(box, RADIUS, outline=LINE, width=1)
            elif step["masked"][cell]:
                draw.rounded_rectangle(box, RADIUS, fill=MASKED)
            else:
                fill = FRESH if step["accepted"][cell] else SETTLED
                draw.rounded_rectangle(box, RADIUS, fill=fill, outline=LINE, width=1)
                self._write(draw, box, self.name(step["ids"][cell]), SOFT if cell == end else INK)
        open_cells = sum(step["masked"])
        text = f"step {number} of {len(self.trace)}    NFE {number}    {open_cells} cells open"
        draw.text((MARGIN, self.size[1] - ROW), text, SOFT, self.font, anchor="lm")
        return image

    def _write(self, draw: ImageDraw.ImageDraw, box: Any, text: str, colour: str) -> None:
        middle = ((box[0] + box[2]) // 2, (box[1] + box[3]) // 2)
        draw.text(middle, text, colour, self.font, anchor="mm")


def _name(token: int, processor: Processor) -> str:
    """How a cell shows its token: one line, never empty."""
    if token == processor.end_id:
        return "end"
    text = processor.tokenizer.decode([token])
    return "".join(c if c.isprintable() else "\u00b7" for c in text.strip())[:40] or "\u00b7"


def with_one_palette(frames: list[Image.Image]) -> list[Image.Image]:
    """The frames in 256 colours chosen once, so that nothing flickers."""
    chosen = [frames[0], frames[len(frames) // 2], frames[-1]]
    width, height = frames[0].size
    sheet = Image.new("RGB", (width, height * len(chosen)))
    for row, frame in enumerate(chosen):
        sheet.paste(frame, (0, row * height))
    palette = sheet.quantize(256)
    return [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]


def write(frames: list[Image.Image], pauses: list[int], path: Path) -> None:
    """Write beside and rename, so that a file is whole or not there."""
    kind = FORMATS[path.suffix.lower()]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    partial_path = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        frames[0].save(
            partial_path,
            format=kind,
            save_all=True,
            append_images=frames[1:],
            duration=pauses,
            loop=0,
            **options,
        )
        partial_path.replace(path)
    except OSError as error:
        raise SettingError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        partial_path.unlink(missing_ok=True)
