"""What a family of published checkpoints is: data that turns its folder into our model.

A new family is one file with a `Family` registered under its name, listed in `MODULES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from mmdiff.errors import CheckpointError
from mmdiff.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

    from mmdiff.decoding.settings import Decoding

Json = Mapping[str, Any]
NAMES = (
    "own",
    "dimple",
    "dream",
    "lavida",
    "llada",
    "llada_v",
    "lumina",
    "mmada",
    "rediff",
    "sdar",
)
MODULES = tuple(f"mmdiff.checkpoints.{name}" for name in NAMES)


@dataclass(frozen=True)
class PictureRow:
    """The ids of one picture to paint: what stands before its cells, the same where guidance looks
    away from the text, the cells (mask ids, and what is fixed among them), what stands behind."""

    prompt: list[int]
    negative: list[int]
    draft: list[int]
    suffix: list[int]


@dataclass(frozen=True)
class Pictures:
    """How a family paints: `row(processor, text, (h, w))` lays out h rows of w codes, `codec` names
    the tokenizer of pictures, `size` is the usual (height, width) in pixels, `decoding` the
    published settings."""

    row: Callable[[Any, str, tuple[int, int]], PictureRow]
    codec: str
    size: tuple[int, int]
    decoding: Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """One published layout.

    `config` maps a config.json to the arguments of `MMDiffConfig`. `keys` are pairs of key
    beginnings (published, ours), `{}` standing for a layer number; the first that fits wins and a
    key that fits none is unknown. `unused` are beginnings of published keys that the published code
    itself never reads. `template` is the chat template, used where the folder's tokenizer has none.
    `system` is the message that opens a conversation, `after_images` follows a message's pictures,
    `image` names the token that stands for one, `around_image` what stands before and behind it.
    `mask` names the mask token, `ends` those that end an answer beside end-of-text, `forbidden`
    those never generated. `pictures` is there where the family paints. `hub` lists known hub ids
    with their licence.
    """

    title: str
    recognise: Callable[[Json], bool]
    config: Callable[[Json], dict[str, Any]]
    keys: tuple[tuple[str, str], ...]
    unused: tuple[str, ...] = ()
    template: str | None = None
    system: str | None = None
    after_images: str = ""
    image: str | None = None
    around_image: tuple[str, str] = ("", "")
    mask: str | None = None
    ends: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    pictures: Pictures | None = None
    hub: Mapping[str, str] = field(default_factory=dict)


FAMILIES: Registry[Family] = Registry("checkpoint family", modules=MODULES)
# What `mmdiff convert --to-diffusion` starts from.
STARTS: Registry[Family] = Registry(
    "autoregressive family", modules=("mmdiff.checkpoints.autoregressive",)
)


@dataclass(frozen=True)
class Native:
    """A family that runs on a network of transformers' own, told by its `model_type`.

    `load` takes the folder, the device and the dtype; `describe` gives a folder's facts as
    `mmdiff info` shows them, `check` the decoding settings `given` over the folder's own over
    a task's defaults; both leave the weights alone. `hub` as in `Family`.
    """

    title: str
    model_type: str
    load: Callable[..., Any]
    describe: Callable[[Path], dict[str, Any]]
    check: Callable[[Path, Json, Json], Decoding]
    hub: Mapping[str, str] = field(default_factory=dict)


NATIVES: Registry[Native] = Registry(
    "native family", modules=("mmdiff.checkpoints.diffusion_gemma",)
)


def find_native(config: Json) -> Native | None:
    """The native family of a config.json, if it is of one."""
    found = (NATIVES.get(name) for name in NATIVES.names())
    return next((n for n in found if n.model_type == config.get("model_type")), None)


def find(config: Json, where: str) -> tuple[str, Family]:
    """Name and family of a config.json; raises CheckpointError when none recognises it."""
    for name in FAMILIES.names():
        family = FAMILIES.get(name)
        if family.recognise(config):
            return name, family
    kind, known = config.get("model_type"), ", ".join(FAMILIES.names())
    if native := find_native(config):
        raise CheckpointError(
            f"{where}: {native.title} runs on transformers' own network; mmdiff.load opens it, and "
            "there is nothing of ours to convert or train"
        )
    if any(STARTS.get(name).recognise(config) for name in STARTS.names()):
        raise CheckpointError(
            f"{where}: a {kind} predicts the next token alone; mmdiff convert SRC DST "
            "--to-diffusion makes a diffusion model of it, to be trained"
        )
    raise CheckpointError(f"{where}: model_type {kind!r} is unknown; known families: {known}")


def need(config: Json, *names: str) -> list[Any]:
    """The values of these keys; raises CheckpointError naming the first that is missing."""
    for name in names:
        if name not in config:
            raise CheckpointError(f"config.json lacks the key {name!r}, which its family needs")
    return [config[name] for name in names]


def refuse(config: Json, expected: Json) -> None:
    """CheckpointError where config.json asks for a variant of the network that is not built."""
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise CheckpointError(
                f"config.json: {name}={config[name]!r} is not supported; only {value!r} is"
            )


def named_ids(tokenizer: Any, names: Mapping[str, str], ids: Json) -> dict[str, int]:
    """`ids` by role, but those of a tokenizer that has the token called names[role]."""
    vocabulary = tokenizer.get_vocab()
    return {role: vocabulary.get(names.get(role), i) for role, i in ids.items()}


@cache
def _pattern(beginning: str) -> re.Pattern[str]:
    return re.compile(re.escape(beginning).replace(r"\{\}", r"(\d+)"))


def rename(key: str, pairs: tuple[tuple[str, str], ...]) -> str | None:
    """`key` with its beginning exchanged, or None when no pair fits."""
    for old, new in pairs:
        match = _pattern(old).match(key)
        if match:
            return new.format(*match.groups()) + key[match.end() :]
    return None


def our_key(family: Family, key: str) -> str | None:
    """Our name of a published tensor; None for one that is never read; raises CheckpointError."""
    if any(_pattern(beginning).match(key) for beginning in family.unused):
        return None
    ours = rename(key, family.keys)
    if ours is None:
        raise CheckpointError(f"holds a weight that a {family.title} model has not: {key}")
    return ours


def published_key(family: Family, key: str) -> str:
    """The published name of one of our tensors."""
    theirs = rename(key, tuple((ours, old) for old, ours in family.keys))
    assert theirs is not None, key
    return theirs
