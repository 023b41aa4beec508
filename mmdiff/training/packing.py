"""Turns -> ids -> rows: several turns of a sample in one row, or a row per turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmdiff.data.source import Sample
from mmdiff.diffusion.schedule import uniform
from mmdiff.errors import TrainingError
from mmdiff.processing import (
    Processor,
    Row,
    behind_pictures,
    packed_row,
    prompt_row,
    turn_blocks,
    turns_row,
)

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
) -> tuple[Row, list[Pair]]:
    """One row of at most `cells` cells: the pictures, the first turn, later turns that fit, each
    with room for a clean twin of its answer where the objective needs that `context`; and the turns
    that it has no room for. The pictures alone for 0 cells. `images` are the pictures' numbers in
    the batch; all prompts begin alike up to their last picture cell.

    With several `parts` the cells behind the pictures are so many equal parts and each turn lies in
    one; a turn without answer fills a part up. Raises TrainingError if the first turn is larger.
    """
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


def by_turn(
    sample: Sample, pairs: list[Pair], processor: Processor, copies: int, first: int
) -> list[Row]:
    """[clean turns | noisy answers]: a conversation as one row, a turn that is no part of one as a
    row of its own. The sample's pictures are numbers `first` onwards of the batch.

    Raises InputError where the chat template rewrites earlier turns.
    """
    alone = isinstance(sample.turns[0].request, str)
    numbers = range(len(pairs))
    rows = []
    for told in [[n] for n in numbers] if alone else [list(numbers)]:
        last = told[-1]
        messages, prompt = sample.turns[last].messages(len(sample.images)), pairs[last][0]
        ends = processor.turn_ends(prompt, messages, [image.size for image in sample.images])
        images = range(first, first + pictures_of(messages))
        answers = [(len(pairs[n][0]), pairs[n][1]) for n in told]
        blocks = turn_blocks(prompt, ends, processor.image_token_id)
        rows.append(turns_row(prompt, blocks, answers, copies, images))
    return rows


def pictures_of(messages: list[dict[str, Any]]) -> int:
    """How many pictures a conversation shows."""
    listed = [part for m in messages if isinstance(m["content"], list) for part in m["content"]]
    return sum(part["type"] == "image" for part in listed)


def alike(sample: Sample, pairs: list[Pair], image_id: int | None) -> list[tuple[int, list[Pair]]]:
    """(number of pictures, turns) whose prompts begin alike up to their last picture cell: these
    may share a row. A later picture of a conversation begins another row, since picture cells see
    all that stands before them."""
    groups: dict[tuple[int, tuple[int, ...]], list[Pair]] = {}
    for turn, pair in zip(sample.turns, pairs, strict=True):
        pictures = pictures_of(turn.messages(len(sample.images)))
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
