"""The training source that a recipe asks for: a generated world, data files, a mixture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmdiff.data.check import Checked, Tally, check
from mmdiff.data.grouped import Grouped
from mmdiff.data.pictures import data_root
from mmdiff.data.readers import data_file, fingerprint, open_data
from mmdiff.data.recorded import Divided, Mixture, Recorded
from mmdiff.data.rows import DataRow
from mmdiff.data.source import SOURCES, Source
from mmdiff.errors import DataError, SettingError, nearest
from mmdiff.training.recipe import Part

if TYPE_CHECKING:
    from mmdiff.processing import Processor
    from mmdiff.training.recipe import Recipe

Watch = Callable[[str, Iterator[Checked]], Iterator[Checked]]


def open_source(
    recipe: Recipe,
    watch: Watch | None = None,
    processor: Processor | None = None,
    limit: int | None = None,
) -> Source:
    """The recipe's source, its files checked row by row.

    Args:
        watch: sees each file's rows go by, to show progress.
        processor, limit: with both, conversations of more than `limit` cells count as bad rows.
            Batches of similar length need the processor.

    Raises:
        DataError: a bad row where the recipe does not say skip, or no good one.
    """
    if isinstance(recipe.data, str) and recipe.data in SOURCES:
        if recipe.group_lengths:
            raise SettingError(f"group_lengths: samples of data={recipe.data} are of one length")
        return SOURCES.get(recipe.data)()
    if recipe.anchor_steps:
        raise SettingError("anchor_steps needs a source with anchors alone, such as data=tabletop")
    if recipe.row_parts > 1:
        raise SettingError("row_parts needs rows alike, as of data=tabletop; leave it out")
    opener = Opener(recipe, watch, processor, limit, [], [])
    listed = recipe.data
    parts = (Part(listed, image_root=recipe.image_root),) if isinstance(listed, str) else listed
    opened = [opener.part(part) for part in parts]
    weights = tuple(map(weight, parts, opened))
    if isinstance(recipe.validation, str):
        held = opener.part(Part(recipe.validation, image_root=recipe.image_root))
        train = mixed(opened, weights)
    else:
        share, by = recipe.validation, recipe.validation_by
        sides = [
            each.divided(share, recipe.seed, by) if isinstance(each, Recorded) else (each, each)
            for each in opened
        ]
        train, held = (mixed([side[i] for side in sides], weights) for i in (0, 1))
    if recipe.group_lengths:
        train = Grouped(train, recipe.batch_size, recipe.group_lengths)
    return Divided(train, held, tuple(opener.left_out), tuple(opener.files))


def weight(part: Part, opened: Source) -> float:
    if part.weight is not None:
        return part.weight
    if not isinstance(opened, Recorded):
        raise SettingError(f"{part.data} has no end, so its part of the mixture needs a weight")
    return float(len(opened))


def mixed(parts: list[Source], weights: tuple[float, ...]) -> Source:
    return parts[0] if len(parts) == 1 else Mixture(tuple(parts), weights)


@dataclass
class Opener:
    """Opens the parts of a recipe; notes in `left_out` what rows it leaves out, and in `files` the
    names and digests of what it read."""

    recipe: Recipe
    watch: Watch | None
    processor: Processor | None
    limit: int | None
    left_out: list[str]
    files: list[tuple[str, str]]

    def part(self, part: Part) -> Source:
        if part.data in SOURCES:
            return SOURCES.get(part.data)()
        if not Path(part.data).exists():
            hint = nearest(part.data, SOURCES.names())
            known = ", ".join(SOURCES.names())
            raise SettingError(
                f"data {part.data!r} is neither a source ({known}) nor a file.{hint}"
            )
        file = data_file(part.data)
        root = data_root(file, part.image_root or self.recipe.image_root)
        made, tally = checked(file, root, self.recipe.unique_ids, self.watch)
        every = self.recipe.answers == "every"
        made = replace(made, every=every, cells=self.recipe.answer_cells)
        tally = Tally(tally.rows, tally.kinds.copy(), dict(tally.first))
        if self.processor is not None:
            made = self.measured(made, tally, self.processor)
        self.judge(file, root, tally)
        self.files.append((file.name, made.digest))
        return made.taken(part.take, self.recipe.seed)

    def measured(self, made: Recorded, tally: Tally, processor: Processor) -> Recorded:
        """The rows with their lengths, but those whose last answer, with its end-of-text cells, the
        model cannot hold."""
        fitting = []
        for about in made.rows:
            cells = length(made.conversation(about), about, processor, made.cells)
            if self.limit is not None and cells > self.limit:
                text = f"takes {cells} cells, the model holds {self.limit}"
                tally.add(replace(about, kind="too_long", text=text), again=True)
            else:
                fitting.append(replace(about, length=cells))
        return replace(made, rows=tuple(fitting))

    def judge(self, file: Path, root: Path, tally: Tally) -> None:
        """Raise DataError for bad rows, or note that they are skipped."""
        kinds = ", ".join(f"{kind} {count}" for kind, count in tally.kinds.most_common())
        text = f"{file}: {tally.bad} of {tally.rows} rows are bad ({kinds})"
        if tally.bad == tally.rows:
            raise DataError(text if tally.rows else f"{file}: holds no rows")
        if not tally.bad:
            return
        if self.recipe.bad_rows == "skip":
            self.left_out.append(f"{text} and left out")
            return
        first = next(iter(tally.first.values()))
        raise DataError(
            f"{text}, the first one {first.place}: {first.text}; all of them: mmdiff check {file} "
            f"--image-root {root} --output report.jsonl; bad_rows=skip trains on the others"
        )


def length(row: DataRow, about: Checked, processor: Processor, cells: int) -> int:
    """Cells of the whole conversation, its last answer padded to at least `cells`."""
    prompt = processor.expand(processor.prompt_ids(row.messages[:-1]), about.sizes)
    return len(prompt) + max(cells, len(processor.encode(row.messages[-1]["content"])) + 1)


_CHECKED: dict[tuple[str, str, bool, int, int], tuple[Recorded, Tally]] = {}


def checked(
    file: Path, root: Path, unique_ids: bool, watch: Watch | None
) -> tuple[Recorded, Tally]:
    """A file's good rows and the count of the others. Looked at once in a process, and again when
    it has changed."""
    status = file.stat()
    places = str(file.resolve()), str(root.resolve())
    key = *places, unique_ids, status.st_mtime_ns, status.st_size
    if key not in _CHECKED:
        reader, tally = open_data(file), Tally()
        rows = check(reader, root, unique_ids)
        good = []
        for row in watch(file.name, rows) if watch else rows:
            tally.add(row)
            if not row.kind:
                good.append(row)
        _CHECKED[key] = Recorded(file, root, reader, tuple(good), fingerprint(file)), tally
    return _CHECKED[key]
