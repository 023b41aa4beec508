"""Samples -> packed rows -> a Canvas with the noise numbers of its cells."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmdiff.canvas import Canvas
from mmdiff.data.source import Sample, Source
from mmdiff.diffusion.arrange import with_context
from mmdiff.diffusion.schedule import sample_times, stratified_times, uniform
from mmdiff.errors import MMDiffError
from mmdiff.processing import Processor, Row, collate
from mmdiff.training.packing import (
    alike,
    by_turn,
    encode_turns,
    numbered_on,
    pack,
    parts_of,
    separate,
)
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


class Batches(Dataset):
    """Item i is the i-th batch of the run: samples i * batch_size onwards. With `parts` n
    item i * n + j is part j of that batch; `share` (which, of) numbers the processes that take
    each part's samples in turn."""

    def __init__(
        self,
        source: Source,
        processor: Processor,
        recipe: Recipe,
        packed: bool,
        split: str,
        share: tuple[int, int] = (0, 1),
        parts: int = 1,
    ) -> None:
        self.source, self.processor, self.recipe = source, processor, recipe
        self.packed, self.split = packed, split
        self.share, self.parts = share, parts
        self.copies = 2 if recipe.objective.complementary else 1
        self.words = plain_ids(processor) if recipe.objective.other_ids else []

    def __len__(self) -> int:
        return self.recipe.max_steps * self.parts

    def __getitem__(self, number: int) -> Batch:
        recipe, processor = self.recipe, self.processor
        objective = recipe.objective
        step, part = divmod(number, self.parts)
        which, processes = self.share
        count = recipe.batch_size // (self.parts * processes)
        first = step * recipe.batch_size + (part * processes + which) * count
        # In the anchor steps a row is its picture alone.
        alone = self.split == "train" and step < recipe.anchor_steps
        turns = 0 if alone else recipe.turns
        samples = [
            self.source.sample(i, recipe.seed, turns, self.split)
            for i in range(first, first + count)
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
        padded = self.packed and not (alone or objective.block or in_parts or recipe.group_lengths)
        length = recipe.row_cells if padded else 0
        canvas = collate(rows, processor.end_id, pixels, processor.image_token_id, length, blocks)
        if in_parts:
            canvas.parts = parts_of(rows, recipe.row_parts)
        if objective.block:
            canvas = with_context(canvas, objective.block)
        index = torch.tensor(owner)
        batch = with_noise(canvas, index, recipe.seed, objective, recipe.batch_size)
        if objective.other_ids:
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
        if recipe.conversation == "by_turn" and not alone:
            made = by_turn(sample, pairs, self.processor, self.copies, first)
            return numbered_on([[row] for row in made])
        context = recipe.objective.block > 0
        groups: list[list[Row]] = []
        for pictures, group in alike(sample, pairs, image_id):
            images = range(first, first + pictures)
            if not (self.packed or alone):
                groups.append(separate(group, self.copies, images))
                continue
            room = 0 if alone else recipe.row_cells
            how = image_id, self.copies, room, images, context, recipe.row_parts
            left = group
            while left:
                row, left = pack(left, *how)
                groups.append([row])
                if not (sample.whole and room):
                    break  # of a generated scene, turns without room are left out
        return numbered_on(groups)


class OrError(Dataset):
    """Batches whose errors are values: a worker process would send a traceback's text instead."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: int) -> Batch | MMDiffError:
        try:
            return self.batches[step]
        except MMDiffError as error:
            return error


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


def _outlive_sigterm(worker: int) -> None:
    """Schedulers send SIGTERM to every process of a job; a worker goes on until its run ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def batches(
    source: Source,
    recipe: Recipe,
    processor: Processor,
    layout: str,
    first: int,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """The parts of the run's batches from step `first` that fall to one process of several; made
    ahead in worker processes when there are any."""
    parts = recipe.accumulate
    dataset = Batches(source, processor, recipe, layout != "full", "train", share, parts)
    loader = DataLoader(
        OrError(dataset),
        sampler=range(first * parts, recipe.max_steps * parts),
        batch_size=None,
        num_workers=recipe.workers,
        prefetch_factor=4 if recipe.workers else None,
        worker_init_fn=_outlive_sigterm,
    )
    for made in loader:
        if isinstance(made, MMDiffError):
            raise made
        yield made
