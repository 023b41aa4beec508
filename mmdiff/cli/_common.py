"""What the verbs share: the model asked for, pictures read one by one, and how results are shown.

Results go to stdout; errors, notes and progress to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmdiff.cli._progress import Progress
from mmdiff.config import parse_assignments
from mmdiff.errors import MMDiffError, SettingError
from mmdiff.loading import check_device, decoding_of, load, resolve

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

    from mmdiff.decoding.settings import Decoding
    from mmdiff.heads.tasks import Generation
    from mmdiff.images import Picture
    from mmdiff.model import MMDiffModel

CHUNK = 32  # pictures held in memory and decoded together
RULES = ("accept", "cache", "order", "preset", "schedule", "stop")

ModelOption = Annotated[
    str, typer.Option("--model", metavar="NAME", help="A built-in name or a checkpoint folder.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object per line on stdout.")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1 or mps. Default: CUDA if present.")
]


class Session:
    """A model with decoding settings for one head: checked at once, loaded when first used."""

    def __init__(self, head: str, model: str, assignments: list[str], device: str | None) -> None:
        from mmdiff.heads.base import HEADS

        self.head, self.device = head, check_device(device)
        self.folder = resolve(model)
        self.settings = parse_assignments(assignments)
        self.codec = self.settings.pop("codec", None)
        made = decoding_of(self.folder, self.settings, HEADS.get(head).defaults)
        if any(rule in self.settings for rule in RULES):
            check_rules(made)

    @cached_property
    def model(self) -> MMDiffModel:
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        return load(self.folder, device=self.device)

    def run(self, inputs: list[tuple[list[Any], Any]], numbers: list[int]) -> list[Generation]:
        """The head over (pictures, text) pairs; `numbers` are their places on the command line."""
        settings = dict(self.settings)
        if isinstance(settings.get("seed"), list):
            settings["seed"] = [settings["seed"][number] for number in numbers]
        if self.codec is not None:
            settings["codec"] = str(self.codec)
        return self.model.run(self.head, inputs, **settings) if inputs else []

    def trace_to(self, path: Path) -> None:
        """Keep every step, for an animation at `path`, which must be a place to write to."""
        from mmdiff.animate import check_target

        check_target(path)
        self.settings["trace"] = True
        decoding_of(self.folder, self.settings, {})  # not every model keeps its steps

    def draw(self, picture: Image.Image, made: Generation, path: Path) -> None:
        """Write the animation of an answer."""
        from mmdiff.animate import animate

        assert self.model.processor is not None  # the answer could not have been made without
        animate(picture, made.trace or [], self.model.processor, path)

    def check_seeds(self, rows: int) -> None:
        """A list of seeds must have one for each row."""
        seeds = self.settings.get("seed")
        if isinstance(seeds, list) and len(seeds) != rows:
            raise SettingError(f"seed lists {len(seeds)} seeds for {rows} pictures; give one each")


def check_rules(settings: Decoding) -> None:
    """Raise SettingError for a rule that does not exist, before anything else is read."""
    from mmdiff.decoding.cache import CACHES
    from mmdiff.decoding.choose import ACCEPTS, ORDERS, SCHEDULES
    from mmdiff.decoding.length import LENGTHS
    from mmdiff.decoding.settings import check_name, parse_rule
    from mmdiff.decoding.speculate import SPECULATES
    from mmdiff.decoding.stop import STOPS

    ACCEPTS.get(parse_rule(settings.accept)[0])
    ORDERS.get(settings.order)
    stop, options = parse_rule(settings.stop)
    STOPS.get(stop)(options)
    check_name("schedule", settings.schedule, SCHEDULES)
    LENGTHS.get(parse_rule(settings.length)[0])
    SPECULATES.get(parse_rule(settings.speculate)[0])
    if settings.cache != "auto":
        CACHES.get(parse_rule(settings.cache)[0])


class Report:
    """Prints results in order, and remembers whether an input failed."""

    def __init__(self, as_json: bool, many: bool = False) -> None:
        self.as_json, self.many = as_json, many
        self.code = 0

    def result(self, made: Generation, **about: Any) -> None:
        """One answer; `about` says what it belongs to (file=..., turn=...) and comes first."""
        if self.as_json:
            row = {"text": made.text, "nfe": made.nfe, "seconds": round(made.seconds, 4)}
            say_json({**about, **row})
        else:
            say(f"{about['file']}: {made.text}" if self.many else made.text)

    def failure(self, error: MMDiffError, **about: Any) -> None:
        """An input that cannot be used; the others go on and the exit code becomes 2."""
        self.code = 2
        if self.as_json:
            say_json({**about, "error": str(error)})
        print(f"mmdiff: error: {error}", file=sys.stderr)


def say(text: str) -> None:
    """Print to stdout, whatever characters it can show."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def say_json(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)


def read_picture(file: str) -> Picture:
    """One picture; what was left out of it is said on stderr. Raises ImageError."""
    from mmdiff.images import load_image

    picture = load_image(file)
    if picture.note:
        print(f"mmdiff: note: {picture.name}: {picture.note}", file=sys.stderr)
    return picture


def over_files(
    session: Session, files: list[str], text: str | None, report: Report
) -> Iterator[tuple[Picture, Generation]]:
    """Run the head on each picture with the same text, report in order, yield the good ones."""
    session.check_seeds(len(files))
    with Progress(len(files), "pictures") as progress:
        for start in range(0, len(files), CHUNK):
            chunk = files[start : start + CHUNK]
            read = [_picture_or_error(file) for file in chunk]
            good = {i: each for i, each in enumerate(read) if not isinstance(each, MMDiffError)}
            inputs: list[tuple[list[Any], Any]] = [([each.image], text) for each in good.values()]
            made = iter(session.run(inputs, [start + i for i in good]))
            for file, picture in zip(chunk, read, strict=True):
                if isinstance(picture, MMDiffError):
                    report.failure(picture, file=file)
                else:
                    generation = next(made)
                    report.result(generation, file=file)
                    yield picture, generation
            progress.advance(len(chunk))


def _picture_or_error(file: str) -> Picture | MMDiffError:
    try:
        return read_picture(file)
    except MMDiffError as error:
        return error
