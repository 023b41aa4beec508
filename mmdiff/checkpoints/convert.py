"""A published checkpoint folder as one of our own, and back: tensors as they are, keys renamed.

Our layout is that of `save_pretrained`; its config.json keeps the published one, which is all that
the way back needs. Tensors that the published code never reads are left out.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.checkpoints.base import FAMILIES, our_key, published_key
from mmdiff.checkpoints.hub import TEXTS
from mmdiff.errors import CheckpointError
from mmdiff.loading import config_of, model_config

if TYPE_CHECKING:
    from torch import Tensor

    from mmdiff.checkpoints.base import Family
    from mmdiff.model import MMDiffConfig

NOT_COPIED = ("config.json", "*.index.json")
SAME = (  # what a published config.json must say as ours does; the weights depend on it
    "text_config",
    "vision_config",
    "projector",
    "tiling",
    "attention_layout",
    "block_size",
    "shift",
    "tie_word_embeddings",
)


@dataclass(frozen=True)
class Conversion:
    """What was written; `layout` is "mmdiff" or the family's name, `unused` counts what was not,
    `notes` are for people."""

    family: str
    layout: str
    tensors: int
    bytes: int
    files: list[str]
    unused: int
    notes: list[str]


@dataclass(frozen=True)
class Job:
    """One direction. `read` maps a key of the source to one of the model of `config`, `write` that
    to one of the target, whose config.json is `text`."""

    family: str
    layout: str
    config: MMDiffConfig
    read: Callable[[str], str | None]
    write: Callable[[str], str]
    text: str


def convert(folder: Path, target: Path, shard_gb: float = 5.0) -> Conversion:
    """Write the checkpoint `folder` to `target` in the other layout, in files of `shard_gb` GB.

    Raises CheckpointError where the source does not load strictly, or has no other layout, or where
    `target` exists or cannot be written; no half-written folder is left behind.
    """
    with whole_folder(target) as part:
        return write(find_job(folder), folder, part, shard_gb * 1e9)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to make and fill, which becomes `target` in the end and vanishes after an error.

    Raises CheckpointError where `target` exists or cannot be written.
    """
    if os.path.lexists(target):
        raise CheckpointError(f"{target} exists already; name a folder that does not")
    part = target.parent / f".{target.name}.{os.getpid()}"
    try:
        yield part
        part.rename(target)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def find_job(folder: Path) -> Job:
    """To our layout for a published folder; to the published one for one that came from there."""
    family, config = model_config(folder)
    if family is not FAMILIES.get("mmdiff"):
        config.architectures = ["MMDiffModel"]
        text = config.to_json_string()
        return Job(str(config.family), "mmdiff", config, partial(our_key, family), str, text)
    back = origin(config, folder)
    theirs = config_of(back, config.published or {}, folder)
    for name in SAME:
        if differ(plain(getattr(config, name)), plain(getattr(theirs, name))):
            raise CheckpointError(
                f"{folder}/config.json: {name} is not what its published config says, so the "
                f"layout of {back.title} cannot hold this model"
            )
    name, text = str(config.family), json.dumps(config.published, indent=2) + "\n"
    return Job(name, name, theirs, partial(our_key, family), partial(published_key, back), text)


def origin(config: MMDiffConfig, folder: Path) -> Family:
    """The family that one of our folders was converted from."""
    if config.family is None or not isinstance(config.published, dict):
        raise CheckpointError(
            f"{folder}: mmdiff's own model, of no published family; there is nothing to convert to"
        )
    if config.family not in FAMILIES.names():
        raise CheckpointError(
            f"{folder}/config.json: the family {config.family!r} is unknown; "
            f"known: {', '.join(FAMILIES.names())}"
        )
    return FAMILIES.get(config.family)


def plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def differ(ours: Any, theirs: Any) -> bool:
    """Whether two settings contradict each other; a group may hold more than the other."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return any(ours[key] != theirs[key] for key in ours.keys() & theirs.keys())
    return bool(ours != theirs)


def write(job: Job, folder: Path, part: Path, limit: float) -> Conversion:
    """Check the whole source, then write it to the new folder `part`."""
    from mmdiff.checkpoints import weights

    model = weights.empty(job.config, folder)
    unused: set[str] = set()

    def read(key: str) -> str | None:
        ours = job.read(key)
        if ours is None:
            unused.add(key)
        return ours

    def stream() -> Iterator[tuple[str, Tensor]]:
        for key, tensor in weights.checked(model, folder, read, "cpu"):
            yield job.write(key), tensor

    sizes = [tensor.nbytes for _, tensor in stream()]
    part.mkdir(parents=True)
    for path in copied(folder):
        shutil.copyfile(path, part / path.name)
    files = write_shards(stream(), sizes, limit, part)
    (part / "config.json").write_text(job.text, encoding="utf-8")
    left = f"left out {len(unused)} tensors that the code of {job.family} never reads"
    notes = [left] if unused else []
    return Conversion(job.family, job.layout, len(sizes), sum(sizes), files, len(unused), notes)


def copied(folder: Path) -> list[Path]:
    """The files for the tokenizer, the pictures and the defaults of generation."""

    def fits(name: str, patterns: tuple[str, ...]) -> bool:
        return any(fnmatch(name, pattern) for pattern in patterns)

    names = (path.name for path in sorted(folder.iterdir()) if path.is_file())
    return [folder / n for n in names if fits(n, TEXTS) and not fits(n, NOT_COPIED)]


def write_shards(
    stream: Iterator[tuple[str, Tensor]], sizes: list[int], limit: float, part: Path
) -> list[str]:
    """Write the tensors in files of at most `limit` bytes (one tensor at least), with an index
    where there are several; returns the names of the files."""
    from mmdiff.checkpoints.weights import INDEX, SINGLE

    numbers = shard_numbers(sizes, limit)
    count = numbers[-1] + 1
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    if count == 1:
        names = [SINGLE]
    where: dict[str, str] = {}
    for number, group in groupby(zip(numbers, stream, strict=True), key=lambda pair: pair[0]):
        tensors = dict(entry for _, entry in group)
        save(tensors, part / names[number])
        where |= dict.fromkeys(tensors, names[number])
    if count > 1:
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": where}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (part / INDEX).write_text(text, encoding="utf-8")
    return names


def shard_numbers(sizes: list[int], limit: float) -> list[int]:
    """For each tensor the number of its file: a file ends before it would pass `limit` bytes."""
    numbers, number, filled = [], 0, 0
    for size in sizes:
        if filled and filled + size > limit:
            number, filled = number + 1, 0
        filled += size
        numbers.append(number)
    return numbers


def save(tensors: dict[str, Tensor], path: Path) -> None:
    """One safetensors file; raises OSError where it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    places = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    apart = {  # a pickle may hold several views of one storage, safetensors may not
        key: tensor.clone() if places[tensor.untyped_storage().data_ptr()] > 1 else tensor
        for key, tensor in tensors.items()
    }
    try:
        save_file({k: t.contiguous() for k, t in apart.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
