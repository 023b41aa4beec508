"""An autoregressive folder as a folder of ours that diffusion training starts from.

Its attention is opened, a mask token joins the tokenizer, and the config records which cell each
position predicts. All tensors stay as they are, bit for bit, but for the rows of new tokens: the
mean of the rows in use. Nothing is trained here; the recipes are in configs/train.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.checkpoints.base import STARTS, our_key
from mmdiff.checkpoints.convert import Conversion, whole_folder, write_shards
from mmdiff.errors import CheckpointError, SettingError, nearest
from mmdiff.loading import config_of, read_config

if TYPE_CHECKING:
    from torch import Tensor

    from mmdiff.checkpoints.base import Family, Json
    from mmdiff.checkpoints.start_prompt import Words
    from mmdiff.model import MMDiffConfig

EMBEDDING, HEAD = "backbone.embed_tokens.weight", "lm_head.weight"
LAYOUTS = {"full": "full", "prefix": "prefix", "block_causal": "block"}


@dataclass(frozen=True)
class Start:
    """What the new model is.

    `layout`: who sees whom (`mmdiff.diffusion.attention`; block_causal is its block). `shift`: cell
    i is predicted at position i - 1, as the source does; by default in the layouts full and prefix
    (DiffuLLaMA, Dream, Dimple), not in block_causal (Efficient-DLM, SDAR). `mask_token`: by default
    the tokenizer's own, else <|mask|>. `block_length`: cells that block_causal decodes together.
    """

    layout: str = "full"
    shift: bool | None = None
    mask_token: str | None = None
    block_length: int | None = None

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            hint, known = nearest(self.layout, LAYOUTS), ", ".join(LAYOUTS)
            raise SettingError(f"layout {self.layout!r} is unknown.{hint} Known: {known}")
        if self.block_length is not None and self.layout != "block_causal":
            raise SettingError("block_length goes with layout block_causal")
        if self.block_length is not None and self.block_length < 1:
            raise SettingError(f"block_length must be at least 1, got {self.block_length}")

    @property
    def shifted(self) -> bool:
        return self.layout != "block_causal" if self.shift is None else self.shift

    @property
    def decoding(self) -> dict[str, Any]:
        """Default decoding settings of the new model."""
        blocks = {"block_length": self.block_length or 32} if self.layout == "block_causal" else {}
        return {"max_new_tokens": 128, **blocks}


@dataclass(frozen=True)
class Started(Conversion):
    """A conversion, and what the new model is."""

    attention_layout: str
    shift: bool
    mask_token: str
    mask_token_id: int


def to_diffusion(
    folder: Path, target: Path, how: Start | None = None, shard_gb: float = 5.0
) -> Started:
    """Make `target` of the autoregressive checkpoint `folder`, in files of `shard_gb` GB.

    Raises CheckpointError where the source is of an unknown kind, does not load strictly or holds
    no tokenizer, or where `target` exists or cannot be written; no half-written folder is left.
    """
    from mmdiff.checkpoints import start_prompt, weights

    how = how or Start()
    published = read_config(folder)
    _, family = find_start(published, f"{folder}/config.json")
    source = config_of(family, published, folder)
    before = weights.empty(source, folder)
    words = start_prompt.read_words(folder, how.mask_token, before.rows, source.image_token_id)
    config = started(source, how, words)
    processor, notes = start_prompt.processor_of(
        weights.empty(config, folder), words, family, folder
    )
    config.eos_token_id = config.pad_token_id = processor.end_id
    left_out: set[str] = set()
    name = renaming(family, source, before.state_dict().keys(), left_out)

    def stream() -> Iterator[tuple[str, Tensor]]:
        for key, tensor in weights.checked(before, folder, name, "cpu"):
            yield key, grown(tensor, words) if key in (EMBEDDING, HEAD) else tensor

    with whole_folder(target) as part:
        sizes = [tensor.nbytes for _, tensor in stream()]
        check_tied(source, family, folder)
        part.mkdir(parents=True)
        files = write_shards(stream(), sizes, shard_gb * 1e9, part)
        (part / "config.json").write_text(config.to_json_string(), encoding="utf-8")
        processor.save_pretrained(part)
        for path in filter(Path.is_file, folder.glob("LICENSE*")):
            shutil.copyfile(path, part / path.name)
    if left_out:
        notes = [f"left out {len(left_out)} tensors that the new model does not need", *notes]
    return Started(
        family=str(published["model_type"]),
        layout="mmdiff",
        tensors=len(sizes),
        bytes=sum(sizes),
        files=files,
        unused=len(left_out),
        attention_layout=config.attention_layout,
        shift=config.shift,
        mask_token=words.mask_token,
        mask_token_id=words.mask_id,
        notes=[*window(published), *words.notes, *notes],
    )


def renaming(
    family: Family, source: MMDiffConfig, wanted: Collection[str], left_out: set[str]
) -> Callable[[str], str | None]:
    """What the source calls a tensor -> our key, or None (and noted in `left_out`) for what the new
    model does not need: a head that is the embedding, a tower's layers behind the one it reads."""

    def name(key: str) -> str | None:
        ours = our_key(family, key)
        if ours == HEAD and source.tie_word_embeddings:
            ours = None
        if ours is not None and ours.startswith("vision.net.") and ours not in wanted:
            ours = None
        if ours is None:
            left_out.add(key)
        return ours

    return name


def find_start(config: Json, where: str) -> tuple[str, Family]:
    """Name and kind of a folder that a diffusion model can start from; raises CheckpointError."""
    for name in STARTS.names():
        if STARTS.get(name).recognise(config):
            return name, STARTS.get(name)
    kind = config.get("model_type")
    known = "; ".join(STARTS.get(name).title for name in STARTS.names())
    raise CheckpointError(
        f"{where}: model_type {kind!r} is no autoregressive model that a diffusion model can start "
        f"from; these are: {known}"
    )


def started(source: MMDiffConfig, how: Start, words: Words) -> MMDiffConfig:
    """The new model's config."""
    config = copy.deepcopy(source)
    config.architectures = ["MMDiffModel"]
    config.text_config["vocab_size"] = words.rows
    config.attention_layout = LAYOUTS[how.layout]
    # Packed training rows keep a picture apart from the questions behind it.
    config.picture_apart = config.vision_config is not None and how.layout != "full"
    config.shift = how.shifted
    config.mask_token_id = words.mask_id
    config.vocab_used = words.used
    config.decoding = how.decoding
    return config


def grown(table: Tensor, words: Words) -> Tensor:
    """(rows, D): the table (V, D), with the mean of its rows in use, summed in float64, in the rows
    of new tokens."""
    import torch

    known = torch.tensor([i for i in words.known if i < len(table)])
    mean = table[known].mean(0, dtype=torch.float64).to(table.dtype)
    table = torch.cat([table, mean.expand(words.rows - len(table), -1)])
    if words.mask_is_new:
        table[words.mask_id] = mean
    return table


def check_tied(config: MMDiffConfig, family: Family, folder: Path) -> None:
    """CheckpointError for a stored head that is not the embedding it should be tied to."""
    import torch

    from mmdiff.checkpoints import weights

    if not config.tie_word_embeddings:
        return
    tables = {
        ours: tensor
        for path in weights.files(folder)
        for key, tensor in weights.tensors(path, "cpu")
        if (ours := our_key(family, key)) in (EMBEDDING, HEAD)
    }
    if HEAD in tables and not torch.equal(tables[HEAD], tables[EMBEDDING]):
        raise CheckpointError(
            f"{folder}: holds a head of its own, but config.json says tie_word_embeddings; "
            "set it to false there"
        )


def window(published: dict[str, Any]) -> list[str]:
    """A note where the source looked no further back than some cells."""
    config = published.get("text_config") or published
    size = config.get("sliding_window")
    if not size or config.get("use_sliding_window") is False:
        return []
    return [f"cells saw the {size} before them; now they see all"]
