"""Messages and pictures -> rows -> Canvas. Training and inference use the same functions.

A `Row` is one example before padding; `collate` pads rows into a Canvas. Prompts are padded on the
left, answers on the right, so that the answers of a batch stand in the same columns.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmdiff.canvas import Block, Canvas, Features
from mmdiff.encoders.vision.patches import Patching, cells_of, read_cutting
from mmdiff.encoders.vision.tiles import Tiling
from mmdiff.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from PIL import Image

    from mmdiff.encoders.vision.base import VisionEncoder

PLACEHOLDER = -200  # one per picture, as LLaVA's IMAGE_TOKEN_INDEX


@dataclass
class Row:
    """Cells of one example, column by column; `prompt` of them come before the answer region."""

    ids: list[int] = field(default_factory=list)
    masked: list[bool] = field(default_factory=list)
    writable: list[bool] = field(default_factory=list)
    block: list[int] = field(default_factory=list)
    segment: list[int] = field(default_factory=list)
    copy: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    prompt: int = 0
    images: list[int] = field(default_factory=list)  # numbers of its pictures in the batch

    def extend(
        self,
        ids: Sequence[int],
        start: int,
        *,
        masked: Sequence[bool] | None = None,
        writable: Sequence[bool] | None = None,
        block: int = 0,
        segment: int = 0,
        copy: int = 0,
    ) -> None:
        """Append cells at rotary positions start, start + 1, ..."""
        n = len(ids)
        self.ids += ids
        self.masked += masked if masked is not None else [False] * n
        self.writable += writable if writable is not None else [False] * n
        self.block += [block] * n
        self.segment += [segment] * n
        self.copy += [copy] * n
        self.position += range(start, start + n)


@dataclass(frozen=True)
class ImageSettings:
    """How a picture becomes pixel values: squashed to a square, scaled to mean/std."""

    size: int = 0
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resample: str = "bicubic"
    tokens: int = 0

    @classmethod
    def of(cls, vision: VisionEncoder, tokens: int) -> ImageSettings:
        """What an encoder wants, whose pictures fill `tokens` cells."""
        mean, std = tuple(vision.mean), tuple(vision.std)
        return cls(vision.image_size, mean, std, vision.resample, tokens)


@dataclass(frozen=True)
class TextSettings:
    """What a checkpoint's prompts and answers need beside its tokenizer; None: as that says.

    `image_token` stands for a picture; None where the vocabulary has none (the canvas then holds
    PLACEHOLDER). `around_image` stands before and behind each picture, `after_images` behind those
    of a message; `system` opens a conversation that has no system message, `end_ids` end an
    answer, the first of them pads it.
    """

    image_token: str | None = None
    mask_id: int | None = None
    end_ids: tuple[int, ...] = ()
    system: str | None = None
    after_images: str = ""
    around_image: tuple[str, str] = ("", "")


class Processor:
    """Tokenizer + picture settings. Saved as tokenizer files and processor_config.json."""

    def __init__(
        self,
        tokenizer: Any,
        image: ImageSettings,
        text: TextSettings = TextSettings(),
        tiling: Tiling | Patching | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.image = image
        self.text = text
        self.tiling = tiling
        self.codec: Any = None  # where pictures are codes: what makes them, or the folder it is in
        self.mask_id = int(tokenizer.mask_token_id if text.mask_id is None else text.mask_id)
        self.end_ids = text.end_ids or (int(tokenizer.eos_token_id),)
        self.end_id = self.end_ids[0]
        self.image_token_id: int | None = None
        if text.image_token is not None:
            self.image_token_id = tokenizer.convert_tokens_to_ids(text.image_token)
        elif image.tokens:
            self.image_token_id = PLACEHOLDER
        self._added = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)

    def save_pretrained(self, folder: str | Path) -> None:
        self.tokenizer.save_pretrained(folder)
        settings = {"image": asdict(self.image), "text": asdict(self.text)}
        if self.tiling is not None:
            settings["tiling"] = asdict(self.tiling)
        text = json.dumps(settings, indent=2)
        (Path(folder) / "processor_config.json").write_text(text + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Processor:
        path = Path(folder) / "processor_config.json"
        tokenizer = read_tokenizer(folder)
        try:
            settings = json.loads(path.read_text())
            image = ImageSettings(**settings["image"])
            said = settings["text"]
            lists = {k: tuple(v) for k, v in said.items() if isinstance(v, list)}
            text = TextSettings(**(said | lists))
            tiling = read_cutting(settings["tiling"]) if settings.get("tiling") else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unreadable(folder, error) from None
        return cls(tokenizer, image, text, tiling)

    @staticmethod
    def saved_in(folder: str | Path) -> bool:
        """Whether the folder holds a processor of ours; published ones may have a file of the same
        name from transformers."""
        path = Path(folder) / "processor_config.json"
        try:
            return path.is_file() and {"image", "text"} <= set(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return True  # damaged: reading it says how

    def cells_of(self, size: tuple[int, int]) -> int:
        """Canvas cells that a picture of `size` (width, height) fills."""
        return cells_of(size, self.tiling, self.image.tokens)

    def read(self, images: Sequence[Image.Image]) -> tuple[Tensor, list[Block] | None]:
        """(n, 3, H, W) pixel values of RGB pictures, and their blocks where they are tiled."""
        if self.tiling is None:
            return self.pixels(images), None
        made = [self.tiling.cut(image) for image in images]
        blocks = [Block(t.grid, t.size, self.cells_of(t.size)) for t in made]
        return torch.cat([t.pixels for t in made]), blocks

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """(n, 3, H, W) float32 pixel values of RGB pictures."""
        import numpy as np
        from PIL import Image

        side = (self.image.size, self.image.size)
        how = Image.Resampling[self.image.resample.upper()]
        arrays = [np.asarray(i if i.size == side else i.resize(side, how)) for i in images]
        values = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (self.image.mean, self.image.std))
        return (values - mean) / std

    def encode(self, text: str) -> list[int]:
        """Ids of user text; text that looks like a special token stays plain text."""
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return list(encoded["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Text up to the first end of text."""
        kept = list(itertools.takewhile(lambda i: i not in self.end_ids, ids))
        text: str = self.tokenizer.decode(kept, skip_special_tokens=True)
        return text.strip()

    def prompt_ids(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Ids of a conversation through the chat template, one image token per picture.

        A message is {"role", "content": str | [{"type": "image"} | {"type": "text", "text"}]}. Text
        holding an added token is taken out, encoded apart as plain text, and spliced back in.
        """
        if self.tokenizer.chat_template is None:
            raise InputError(
                "this checkpoint's tokenizer has no chat template (chat_template.jinja); use "
                "generate(input_ids=...)"
            )
        held: list[str] = []

        def guard(text: str) -> str:
            if not any(token in text for token in (*self._added, _OPEN, _IMAGE)):
                return text
            held.append(text)
            return f"{_OPEN}{len(held) - 1}{_CLOSE}"

        if self.text.system and (not messages or messages[0]["role"] != "system"):
            messages = [{"role": "system", "content": self.text.system}, *messages]
        rendered = self.tokenizer.apply_chat_template(
            [{**m, "content": self._flatten(m["content"], guard)} for m in messages],
            tokenize=False,
            add_generation_prompt=True,
        )
        ids: list[int] = []
        for i, piece in enumerate(rendered.split(_OPEN)):
            if i:
                number, piece = piece.split(_CLOSE, 1)
                ids += self.encode(held[int(number)])
            for k, part in enumerate(piece.split(_IMAGE)):
                ids += [PLACEHOLDER] * (k > 0)
                ids += self.tokenizer(part, add_special_tokens=False)["input_ids"] if part else []
        return ids

    def _flatten(self, content: Any, guard: Callable[[str], str]) -> str:
        if isinstance(content, str):
            return guard(content)
        flat = ""
        # Neighbouring texts are guarded as one: together they may spell a special token.
        for kind, parts in itertools.groupby(content, key=lambda part: part["type"]):
            if kind == "text":
                flat += guard("".join(part["text"] for part in parts))
            elif self.image_token_id is None:
                raise InputError("this model takes no pictures; leave them out")
            else:
                before, behind = self.text.around_image
                picture = before + (self.text.image_token or _IMAGE) + behind
                flat += picture * len(list(parts)) + self.text.after_images
        return flat

    def expand(
        self, ids: Sequence[int], sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[int]:
        """Every image token repeated to the cells its picture fills; tiled pictures need their
        `sizes` (width, height), in order."""
        out: list[int] = []
        number = 0
        for i in ids:
            if i != self.image_token_id:
                out.append(i)
                continue
            out += [i] * (self.image.tokens if sizes is None else self.cells_of(sizes[number]))
            number += 1
        return out

    def turn_ends(
        self,
        prompt: Sequence[int],
        messages: Sequence[dict[str, Any]],
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[int]:
        """Where the turns end in the expanded ids of a `prompt`: where each earlier answer would
        have begun, and the prompt's own end.

        Raises InputError where the chat template writes earlier turns in another way once others
        follow, so that the prompts of a conversation do not begin alike.
        """
        ends = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            earlier = self.expand(self.prompt_ids(messages[:number]), sizes)
            if list(prompt[: len(earlier)]) != earlier:
                raise InputError(
                    f"message {number}: this model's chat template rewrites earlier turns, so a "
                    "conversation cannot be laid out by turn; train with conversation=by_answer"
                )
            ends.append(len(earlier))
        return [*ends, len(prompt)]


def read_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a folder's own files, which run no code: tokenizer.json, or vocab.json and
    merges.txt of one that splits words as Qwen2's. Raises CheckpointError for any other."""
    import transformers

    path, kind = Path(folder), transformers.PreTrainedTokenizerFast
    try:
        if not (path / "tokenizer.json").is_file() and (path / "merges.txt").is_file():
            said = json.loads((path / "tokenizer_config.json").read_text())
            name = str(said.get("tokenizer_class"))
            if not name.startswith(AS_QWEN2):
                raise ValueError(f"no tokenizer.json, and merges.txt is of an unknown {name}")
            kind = transformers.Qwen2Tokenizer
        return kind.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise _unreadable(folder, error) from None


def _unreadable(folder: str | Path, error: Exception) -> CheckpointError:
    first = (str(error).strip() or repr(error)).splitlines()[0]
    return CheckpointError(f"{folder}: the processor files cannot be read ({first})")


# Tokenizer classes published as Python beside vocab.json and merges.txt: copies of Qwen2's.
AS_QWEN2 = ("Qwen2", "Dream", "Dimple")
# Private-use characters: around the number of a held-out text; for a picture without a token.
_OPEN, _CLOSE, _IMAGE = "\ue000", "\ue001", "\ue002"


def prompt_row(
    prompt: Sequence[int], answer: Sequence[int], holes: Sequence[bool], images: Sequence[int] = ()
) -> Row:
    """One row: expanded prompt ids, then the answer region, of which `holes` are to be filled."""
    row = Row(prompt=len(prompt), images=list(images))
    row.extend(list(prompt), 0)
    row.extend(list(answer), len(prompt), masked=list(holes), writable=list(holes), block=1)
    return row


def packed_row(
    shared: Sequence[int],
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    copies: int = 2,
    images: Sequence[int] = (),
) -> Row:
    """A training row: shared picture cells, then (prompt, answer) pairs as independent segments.

    Each answer stands `copies` times at the same positions: two copies make a complementary pair.
    The prefix layout makes this equal to one row per pair and copy.
    """
    row = Row(images=list(images))
    row.extend(list(shared), 0)
    for number, (prompt, answer) in enumerate(pairs, start=1):
        row.extend(list(prompt), len(shared), segment=number)
        for copy in range(1, copies + 1):
            row.extend(
                list(answer),
                len(shared) + len(prompt),
                writable=[True] * len(answer),
                block=1,
                segment=number,
                copy=copy if copies > 1 else 0,
            )
    return row


def turns_row(
    prompt: Sequence[int],
    blocks: Sequence[int],
    answers: Sequence[tuple[int, Sequence[int]]],
    copies: int,
    images: Sequence[int] = (),
) -> Row:
    """A training row [clean turns | noisy answers]: a `prompt` with the `blocks` of its turns
    (`turn_blocks`), then every answer (its first position, ids) `copies` times.

    An answer, a segment of its own, sees the clean turns up to its question. With the prefix layout
    this equals a row per answer and copy with the same blocks in its prompt.
    """
    row = Row(images=list(images))
    row.extend(list(prompt), 0)
    row.block = list(blocks)
    for segment, (start, answer) in enumerate(answers, start=1):
        for copy in range(1, copies + 1):
            row.extend(
                list(answer),
                start,
                writable=[True] * len(answer),
                block=blocks[start - 1] + 1,
                segment=segment,
                copy=copy,
            )
    return row


def collate(
    rows: Sequence[Row],
    pad_id: int,
    pixel_values: Tensor | None = None,
    image: int | None = None,
    length: int = 0,
    blocks: list[Block] | None = None,
) -> Canvas:
    """Pad rows into a Canvas; `image` is the id of the cells that pictures fill, in order.

    The canvas is as long as the rows need, or `length` if that is more. `blocks` are those of the
    pictures where these are tiled.
    """
    prompt = max(row.prompt for row in rows)
    length = max(length, prompt + max(len(row.ids) - row.prompt for row in rows))
    columns = ("ids", "masked", "writable", "block", "segment", "copy", "position")
    fill = {"ids": pad_id, "masked": False, "writable": False}
    made: dict[str, list[list[Any]]] = {name: [] for name in (*columns, "valid")}
    for row in rows:
        left = prompt - row.prompt
        right = length - left - len(row.ids)
        for name in columns:
            pad = fill.get(name, 0)
            made[name].append([pad] * left + getattr(row, name) + [pad] * right)
        made["valid"].append([False] * left + [True] * len(row.ids) + [False] * right)
    tensors: dict[str, Any] = {name: torch.tensor(values) for name, values in made.items()}
    canvas = Canvas(**tensors, prompt_length=prompt)
    if pixel_values is not None and pixel_values.shape[0]:
        order = [i for row in rows for i in row.images]
        canvas.features = place(canvas, image, pixel_values, order, blocks)
    return canvas


def behind_pictures(prompt: Sequence[int], image_id: int | None) -> int:
    """The number of cells up to the last picture cell, that one included."""
    return max((i for i, x in enumerate(prompt) if x == image_id), default=-1) + 1


def turn_blocks(prompt: Sequence[int], ends: Sequence[int], image_id: int | None) -> list[int]:
    """Block numbers of a prompt whose turns end at `ends`, for checkpoints trained by turn
    (`turn_causal`): a turn's cells see no later turn, and its pictures none of the words behind
    them.

    Of K turns the cells of turn n = 1 .. K up to its last picture are block 2 (n - K) - 1, the
    others 2 (n - K), so that the answer of the last turn can be block 1 as ever.
    """
    blocks: list[int] = []
    for start, end, n in zip([0, *ends], ends, range(1 - len(ends), 1), strict=False):
        pictured = behind_pictures(prompt[start:end], image_id)
        blocks += [2 * n - 1] * pictured + [2 * n] * (end - start - pictured)
    return blocks


def part_picture(canvas: Canvas) -> None:
    """Put the cells behind each row's last picture cell into segment 1, as packed rows have them.

    For checkpoints trained on packed rows (`picture_apart`): picture cells then never see the
    question, in training and in use alike.
    """
    if canvas.features is None:
        return
    pictured = torch.zeros_like(canvas.valid).flatten()
    pictured[canvas.features.cells] = True
    from_here_on = pictured.view_as(canvas.valid).flip(1).cumsum(1).flip(1) > 0
    has_picture = from_here_on.any(1, keepdim=True)
    canvas.segment = (~from_here_on & has_picture).long()


def place(
    canvas: Canvas,
    image: int | None,
    pixel_values: Tensor,
    order: Sequence[int],
    blocks: list[Block] | None = None,
) -> Features:
    """Features for the cells that hold the image id; pictures fill them in `order`.

    A negative id, which no vocabulary has, becomes 0 in the canvas. Raises InputError where cells
    and pictures do not fit.
    """
    # A typed image token never becomes this id (see Processor.encode), so ids are safe to search.
    cells = ((canvas.ids == image) & canvas.valid & ~canvas.writable).flatten().nonzero()[:, 0]
    canvas.ids = canvas.ids.clamp(min=0)
    if blocks is None:
        if len(order) == 0 or cells.numel() % len(order):
            raise InputError(f"{len(order)} pictures do not fit the {cells.numel()} image cells")
        sizes = [cells.numel() // len(order)] * (max(order) + 1)
    else:
        sizes = [block.cells for block in blocks]
    starts = [0, *itertools.accumulate(sizes)]
    source = [n for i in order for n in range(starts[i], starts[i] + sizes[i])]
    if len(source) != cells.numel():
        raise InputError(f"{len(order)} pictures do not fit the {cells.numel()} image cells")
    return Features(pixel_values, torch.tensor(source, device=cells.device), cells, blocks)
