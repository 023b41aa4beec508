"""Samples -> packed rows -> a Canvas with the noise numbers of its cells."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmdiff.canvas import Canvas
from mmdiff.data.source import Sample, Source
from mmdiff.diffusion.arrange import with_context
from mmdiff.diffusion.schedule import sample_times, stratified_times, uniform
from mmdiff.errors import TrainingError
from mmdiff.processing import Processor, Row, collate, packed_row, prompt_row
from mmdiff.training.recipe import Objective, Recipe

SEGMENTS = 1024  # more segments than any row packs: index * SEGMENTS + segment numbers every answer
BLOCKS = 4096  # more blocks than any answer has


@dataclass
class Batch:
    """A clean canvas, and per cell (B, L) the time in [0, 1] of its answer or block and a uniform
    number u.

    `anchor_cells` (A,) are flat canvas cells, `anchor_words` (A,) ids of words that hold there,
    `empty_cells` (E,) picture cells in which no object has its centre. For revision (ReDiff)
    `given` (B, L) ids stand in the unmasked cells that `replaced` (B, L) marks, and `corrected`
    (B,) marks rows that are a draft with known faults: nothing is masked there, and its replaced
    cells alone are scored.
    """

    canvas: Canvas
    time: Tensor
    u: Tensor
    anchor_cells: Tensor | None = None
    anchor_words: Tensor | None = None
    empty_cells: Tensor | None = None
    given: Tensor | None = None
    replaced: Tensor | None = None
    corrected: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        moved = {
            f.name: getattr(self, f.name).to(device)
            for f in fields(self)
            if getattr(self, f.name) is not None
        }
        return replace(self, **moved)


Pair = tuple[list[int], list[int]]  # expanded prompt ids, answer ids with end-of-text padding


def encode_turns(
    sample: Sample, processor: Processor, seed: int, padding: str = "random"
) -> list[Pair]:
    """Ids of every turn, and end-of-text behind its answer: a random number of cells, few ones more
    often, which teaches any size of answer region (`random`); `one`; all its `room`."""
    pairs = []
    sizes = [image.size for image in sample.images]
    key = torch.tensor(seed), torch.tensor(sample.index), torch.arange(len(sample.turns))
    draws = uniform(*key, torch.tensor(0x9AD)).tolist()
    for turn, draw in zip(sample.turns, draws, strict=True):
        prompt = processor.expand(processor.prompt_ids(turn.messages(len(sizes))), sizes)
        answer = processor.encode(turn.answer)
        room = max(0, turn.cells - len(answer) - 1)
        cells = {"random": int((room + 1) * draw**3), "one": 0, "room": room}
        ends = 1 + min(room, cells[padding])
        pairs.append((prompt, answer + [processor.end_id] * ends))
    return pairs


def pack(
    pairs: list[Pair],
    image_id: int | None,
    copies: int,
    cells: int,
    images: Sequence[int],
    context: bool = False,
    parts: int = 1,
) -> Row:
    """One row of at most `cells` cells: the pictures, the first turn, later turns that fit, each
    with room for a clean twin of its answer where the objective needs that `context`. The pictures
    alone for 0 cells. `images` are the pictures' numbers in the batch; all prompts begin alike up
    to their last picture cell.

    With several `parts` the cells behind the pictures are so many equal parts and each turn lies in
    one; a turn without answer fills a part up. Raises TrainingError if the first turn is larger.
    """
    return _pack(pairs, image_id, copies, cells, images, context, parts)[0]


def _pack(
    pairs: list[Pair],
    image_id: int | None,
    copies: int,
    cells: int,
    images: Sequence[int],
    context: bool,
    parts: int,
) -> tuple[Row, list[Pair]]:
    """The row, and the turns that it has no room for."""
    first = pairs[0][0]
    last = behind_pictures(first, image_id)
    width = max(0, cells - last) // parts
    room = [width] * parts
    kept: list[list[Pair]] = [[] for _ in room]
    left: list[Pair] = []
    for number, (prompt, answer) in enumerate(pairs):
        size = len(prompt) - last + (copies + context) * len(answer)
        fitting = [part for part in range(parts) if size <= room[part]]
        if number == 0 and cells and not fitting:
            if parts > 1:
                raise TrainingError(
                    f"the first turn about picture {list(images)} of a batch takes {size} cells, a "
                    f"part of its row has {width}; raise row_cells or lower row_parts"
                )
            fitting = [0]
        if fitting:
            kept[fitting[0]].append((prompt[last:], answer))
            room[fitting[0]] -= size
        else:
            left.append((prompt, answer))
    if parts > 1 and cells:
        for part, rest in zip(kept, room, strict=True):
            part.append(([first[0]] * rest, []))
    return packed_row(first[:last], [pair for part in kept for pair in part], copies, images), left


def pack_all(
    pairs: list[Pair],
    image_id: int | None,
    copies: int,
    cells: int,
    images: Sequence[int],
    context: bool = False,
    parts: int = 1,
) -> list[Row]:
    """Rows as of `pack`, as many as all turns need."""
    rows: list[Row] = []
    while pairs:
        row, pairs = _pack(pairs, image_id, copies, cells, images, context, parts)
        rows.append(row)
    return rows


def behind_pictures(prompt: list[int], image_id: int | None) -> int:
    """The number of cells up to the last picture cell, that one included."""
    return max((i for i, x in enumerate(prompt) if x == image_id), default=-1) + 1


def alike(sample: Sample, pairs: list[Pair], image_id: int | None) -> list[tuple[int, list[Pair]]]:
    """(number of pictures, turns) whose prompts begin alike up to their last picture cell: these
    may share a row. A later picture of a conversation begins another row, since picture cells see
    all that stands before them."""
    groups: dict[tuple[int, tuple[int, ...]], list[Pair]] = {}
    for turn, pair in zip(sample.turns, pairs, strict=True):
        messages = turn.messages(len(sample.images))
        listed = [part for m in messages if isinstance(m["content"], list) for part in m["content"]]
        pictures = sum(part["type"] == "image" for part in listed)
        front = tuple(pair[0][: behind_pictures(pair[0], image_id)])
        groups.setdefault((pictures, front), []).append(pair)
    return [(pictures, group) for (pictures, _), group in groups.items()]


def numbered_on(groups: list[list[Row]]) -> list[Row]:
    """All rows of a sample, their segments numbered on from group to group, so that every answer
    has noise of its own."""
    before = 0
    for rows in groups:
        for row in rows:
            row.segment = [number + before if number else 0 for number in row.segment]
        before = max(before, *(max(row.segment) for row in rows))
    return [row for rows in groups for row in rows]


def parts_of(rows: list[Row], parts: int) -> tuple[int, int]:
    """(S, W) of rows packed in `parts`. Raises TrainingError if their pictures differ in cells."""
    shared = {row.segment.count(0) for row in rows}
    if len(shared) > 1:
        raise TrainingError(
            f"row_parts={parts} needs pictures of one size; here they take {sorted(shared)} cells; "
            "leave row_parts out"
        )
    first = shared.pop()
    return first, (len(rows[0].ids) - first) // parts


def separate(pairs: list[Pair], copies: int, images: Sequence[int]) -> list[Row]:
    """One row per turn and copy, numbered as in the packed row."""
    rows = []
    for number, (prompt, answer) in enumerate(pairs, start=1):
        for copy in range(1, copies + 1):
            row = prompt_row(prompt, answer, [False] * len(answer), images)
            row.writable[row.prompt :] = [True] * len(answer)
            row.segment = [number] * len(row.ids)
            row.copy = [copy if copies > 1 else 0] * len(row.ids)
            rows.append(row)
    return rows


class Batches(Dataset):
    """Item i is the i-th batch of the run: samples i * batch_size onwards."""

    def __init__(
        self, source: Source, processor: Processor, recipe: Recipe, packed: bool, split: str
    ) -> None:
        self.source, self.processor, self.recipe = source, processor, recipe
        self.packed, self.split = packed, split
        self.copies = 2 if recipe.objective.complementary else 1
        self.words = plain_ids(processor) if recipe.objective.replace else []

    def __len__(self) -> int:
        return self.recipe.max_steps

    def __getitem__(self, step: int) -> Batch:
        recipe, processor = self.recipe, self.processor
        objective = recipe.objective
        first = step * recipe.batch_size
        # In the anchor steps a row is its picture alone.
        alone = self.split == "train" and step < recipe.anchor_steps
        turns = 0 if alone else recipe.turns
        samples = [
            self.source.sample(i, recipe.seed, turns, self.split)
            for i in range(first, first + recipe.batch_size)
        ]
        rows: list[Row] = []
        owner: list[int] = []
        pictures: list[Any] = []
        for sample in samples:
            made = self.rows(sample, len(pictures), alone)
            pictures += sample.images
            rows += made
            owner += [sample.index] * len(made)
        pixels, blocks = processor.read(pictures) if pictures else (None, None)
        # Packed rows are all padded to one length: compiled code then fits every step.
        in_parts = self.packed and not alone and recipe.row_parts > 1
        padded = self.packed and not alone and not objective.block and not in_parts
        length = recipe.row_cells if padded else 0
        canvas = collate(rows, processor.end_id, pixels, processor.image_token_id, length, blocks)
        if in_parts:
            canvas.parts = parts_of(rows, recipe.row_parts)
        if objective.block:
            canvas = with_context(canvas, objective.block)
        index = torch.tensor(owner)
        batch = with_noise(canvas, index, recipe.seed, objective, recipe.batch_size)
        if objective.replace:
            batch = with_replacements(batch, index, recipe.seed, objective.replace, self.words)
        if objective.anchors and self.split == "train":
            found = anchor_targets(samples, canvas, processor)
            batch.anchor_cells, batch.anchor_words, batch.empty_cells = found
        return batch

    def rows(self, sample: Sample, first: int, alone: bool) -> list[Row]:
        """The rows of a sample whose pictures are numbers `first` onwards of the batch; its
        pictures `alone` where these are all that the step trains."""
        recipe, image_id = self.recipe, self.processor.image_token_id
        pairs = encode_turns(sample, self.processor, recipe.seed, recipe.objective.padding)
        context = recipe.objective.block > 0
        groups: list[list[Row]] = []
        for pictures, group in alike(sample, pairs, image_id):
            images = range(first, first + pictures)
            if not (self.packed or alone):
                groups.append(separate(group, self.copies, images))
                continue
            room = 0 if alone else recipe.row_cells
            how = image_id, self.copies, room, images, context, recipe.row_parts
            made = pack_all(group, *how) if sample.whole and room else [pack(group, *how)]
            groups += [[row] for row in made]
        return numbered_on(groups)


def plain_ids(processor: Processor) -> list[int]:
    """Ids of the vocabulary without special and added tokens."""
    added = set(processor.tokenizer.get_added_vocab().values())
    return [i for i in range(len(processor.tokenizer)) if i not in added]


def anchor_targets(
    samples: list[Sample], canvas: Canvas, processor: Processor
) -> tuple[Tensor, Tensor, Tensor]:
    """(A,) flat canvas cells and (A,) word ids: what stands in the grid cell of each anchor; and
    (E,) the flat cells of the other grid cells of these pictures.

    Words of several tokens are left out; so are anchors where tokens form no square grid.
    """
    assert canvas.features is not None
    tokens = processor.image.tokens
    side = math.isqrt(tokens)
    first = {int(s): i for i, s in reversed(list(enumerate(canvas.features.source.tolist())))}
    named = {word for sample in samples for anchor in sample.anchors for word in anchor.words}
    encoded = {word: processor.encode(word) for word in named}
    cells: list[int] = []
    words: list[int] = []
    empty: list[int] = []
    picture = 0
    for sample in samples:
        number, picture = picture, picture + len(sample.images)
        if not sample.anchors or side * side != tokens:
            continue
        begin = first[number * tokens]
        grid = canvas.features.cells[begin : begin + tokens].tolist()
        taken = [grid[int(a.y * side) * side + int(a.x * side)] for a in sample.anchors]
        for cell, anchor in zip(taken, sample.anchors, strict=True):
            for word in anchor.words:
                if len(encoded[word]) == 1:
                    cells.append(cell)
                    words += encoded[word]
        empty += [cell for cell in grid if cell not in taken]
    return torch.tensor(cells).long(), torch.tensor(words).long(), torch.tensor(empty).long()


def with_noise(
    canvas: Canvas,
    index: Tensor,
    seed: int,
    objective: Objective | None = None,
    strata: int = 1,
) -> Batch:
    """Times by answer number, one per block where the objective has blocks, and u by (answer,
    position): both halves of a pair share them. `index` (B,) are the rows' sample numbers, `strata`
    the samples of a step."""
    objective = objective or Objective()
    answer = index[:, None] * SEGMENTS + canvas.segment
    number = answer * BLOCKS + canvas.block if objective.block else answer
    if objective.times == "golden":
        time = sample_times(number, seed)
    else:
        time = uniform(torch.tensor(seed), number, torch.tensor(0x71ED))
    if objective.times == "stratified":
        place = (index[:, None] + canvas.segment + canvas.block * bool(objective.block)) % strata
        time = stratified_times(time, place, strata)
    u = uniform(torch.tensor(seed), answer, canvas.place).float()
    return Batch(canvas, time.float(), u)


def with_replacements(
    batch: Batch, index: Tensor, seed: int, share: float, words: list[int]
) -> Batch:
    """The batch with a `share` of its answer cells marked to show one of `words` at random in place
    of its id where it is not masked (ReDiff)."""
    canvas = batch.canvas
    answer = index[:, None] * SEGMENTS + canvas.segment
    draws = [
        uniform(torch.tensor(seed), answer, canvas.place, canvas.copy, torch.tensor(key))
        for key in (0x5E1F, 0x5E2F)
    ]
    place = (draws[1] * len(words)).long().clamp(max=len(words) - 1)
    return replace(
        batch,
        given=torch.tensor(words)[place],
        replaced=canvas.writable & (draws[0] < share),
        corrected=torch.zeros(len(index), dtype=torch.bool),
    )


def batches(
    source: Source, recipe: Recipe, processor: Processor, layout: str, first: int
) -> Iterator[Batch]:
    """The run's batches from number `first`; made ahead in worker processes when there are any."""
    dataset = Batches(source, processor, recipe, layout != "full", "train")
    steps = range(first, recipe.max_steps)
    loader = DataLoader(
        dataset,
        sampler=list(steps),
        batch_size=None,
        num_workers=recipe.workers,
        prefetch_factor=4 if recipe.workers else None,
    )
    return iter(loader)
