"""A benchmark run: questions asked in batches, answers kept, scores written.

    from mmdiff.eval.runner import evaluate
    results = evaluate(model, "mmmu", data="MMMU", output="runs/mmmu", limit=100, steps=8)

The folder holds `results.json`, `samples.jsonl` with every answer, `report.html`, and
`bad_rows.jsonl` where rows could not be asked or scored. The same call goes on where a killed one
stopped, and asks nothing again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.errors import DataError, ImageError, InputError, SettingError
from mmdiff.eval.fingerprint import fingerprint
from mmdiff.eval.report import report
from mmdiff.eval.results import Answered, results_of
from mmdiff.eval.samples import Sample, Samples, key_of, write_whole
from mmdiff.eval.tasks.base import Judged, Task, make
from mmdiff.eval.tasks.source import Asked, Bad, Source, open_source, questions
from mmdiff.heads.base import HEADS

if TYPE_CHECKING:
    from PIL import Image

    from mmdiff.heads.run import Generation
    from mmdiff.model import MMDiffModel

BATCH = 32  # questions asked together
BAD_ROWS = "bad_rows.jsonl"


@dataclass
class Plan:
    """A benchmark with its data read: what will be asked, and which rows cannot be."""

    task: Task
    source: Source
    asked: list[Asked]
    bad: list[Bad]
    limit: int | None


def plan(
    task: Task,
    data: str | Path | None = None,
    limit: int | None = None,
    image_root: str | Path | None = None,
) -> Plan:
    """Read a benchmark's data, `limit` rows of them. Raises DataError, SettingError."""
    source = open_source(task, data, image_root)
    asked, bad = questions(task, source, limit)
    if not asked and not bad:
        raise DataError(f"{source.name}: holds no rows")
    return Plan(task, source, asked, bad, limit)


def evaluate(
    model: MMDiffModel,
    task: str | Plan,
    data: str | Path | None = None,
    output: str | Path = "runs/eval",
    *,
    limit: int | None = None,
    image_root: str | Path | None = None,
    metric: str | None = None,
    name: str = "",
    batch_size: int = BATCH,
    progress: Callable[[int], None] | None = None,
    **decoding: Any,
) -> dict[str, Any]:
    """Run a benchmark and write its folder; returns what `results.json` holds.

    Args:
        task: `mmmu`, `vqav2`, ..., or a `plan` made before; `data` and what belongs to it then
            stand in the plan.
        name: how the model is called in the results.
        progress: hears how many questions are done, those of an earlier run first.

    Raises:
        SettingError: an unknown benchmark or setting.
        DataError: data that cannot be read, or an output that cannot be written. Bad rows raise
            nothing: they are counted in the results and listed in `bad_rows.jsonl`.
    """
    made = task if isinstance(task, Plan) else plan(make(task, metric), data, limit, image_root)
    given = settings_of(made.task, decoding)
    settings = model.decoding(given, HEADS.get(made.task.head).defaults)
    if not isinstance(settings.seed, int):
        raise SettingError("seed must be one number for a benchmark; every question gets it")
    print_ = fingerprint(model)
    keys = [key_of(asked.digest, print_, asdict(settings)) for asked in made.asked]
    samples = Samples(Path(output))
    refused: dict[int, Bad] = {}
    for batch in _batches(len(keys), batch_size):
        todo = [n for n in batch if keys[n] not in samples.known]
        answers = ask(model, made, [made.asked[n] for n in todo], given) if todo else []
        new = []
        for n, answer in zip(todo, answers, strict=True):
            if isinstance(answer, Bad):
                refused[n] = answer
            else:
                new.append(_sample(keys[n], made.asked[n], answer))
        if new:
            samples.add(new)
        if progress:
            progress(len(batch))
    kept = [n for n in range(len(keys)) if n not in refused]
    known = [samples.known[keys[n]] for n in kept]
    asked = [made.asked[n] for n in kept]
    marks = made.task.marks([each.question for each in asked], [each.text for each in known])
    answered = [
        Answered(Judged(each.question, sample.text, mark), sample)
        for each, sample, mark in zip(asked, known, marks, strict=True)
    ]
    model_facts = {"name": name or str(model.config.name_or_path or ""), "fingerprint": print_}
    bad = made.bad + list(refused.values())
    results = results_of(made.task, answered, settings, model_facts, bad)
    results["data"] = {"path": made.source.name, "limit": made.limit} | results["data"]
    finish(Path(output), made, samples, answered, bad, results, asked)
    return results


def settings_of(task: Task, decoding: dict[str, Any]) -> dict[str, Any]:
    """The settings asked for, over the length that the benchmark's answers need."""
    return ({"max_new_tokens": task.cells} if task.cells else {}) | decoding


def ask(
    model: MMDiffModel, made: Plan, asked: Sequence[Asked], given: dict[str, Any]
) -> list[Generation | Bad]:
    """An answer for each question, or why there is none. Where a batch is refused, its questions
    are asked one by one."""
    inputs: list[tuple[list[Image.Image], Any]] = []
    answers: dict[int, Generation | Bad] = {}
    drawn: dict[tuple[Any, int], list[Image.Image]] = {}  # shown to several questions, read once
    for number, each in enumerate(asked):
        address = (each.address[0], len(each.question.images))
        try:
            pictures = drawn.get(address) or made.source.pictures(made.task, each)
        except DataError as error:
            answers[number] = _bad(each, error)
        else:
            drawn[address] = pictures
            inputs.append((pictures, each.question.text))
    open_ = [number for number in range(len(asked)) if number not in answers]
    replies = iter(_run(model, made.task.head, inputs, given))
    for number in open_:
        reply = next(replies)
        answers[number] = _bad(asked[number], reply) if isinstance(reply, Exception) else reply
    return [answers[number] for number in range(len(asked))]


def _run(
    model: MMDiffModel, head: str, inputs: list[tuple[list[Any], Any]], given: dict[str, Any]
) -> list[Generation | InputError | ImageError]:
    try:
        return list(model.run(head, inputs, batch_size=max(1, len(inputs)), **given))
    except (InputError, ImageError) as error:
        if len(inputs) == 1:
            return [error]
    return [reply for each in inputs for reply in _run(model, head, [each], given)]


def _bad(asked: Asked, error: Exception) -> Bad:
    kind = getattr(error, "kind", "refused")
    return Bad(asked.place, asked.question.id, kind, str(error))


def _sample(key: str, asked: Asked, made: Generation) -> Sample:
    identifier = asked.question.id
    return Sample(key, identifier, made.text, made.nfe, made.length, round(made.seconds, 6))


def _batches(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(count, start + size))


def finish(
    output: Path,
    made: Plan,
    samples: Samples,
    answered: Sequence[Answered],
    bad: Sequence[Bad],
    results: dict[str, Any],
    asked: Sequence[Asked],
) -> None:
    """Write what a finished run leaves."""
    samples.rewrite((each.sample.key, each.verdict) for each in answered)
    rows = "".join(json.dumps(asdict(row)) + "\n" for row in bad)
    if rows:
        write_whole(output / BAD_ROWS, rows)
    else:
        (output / BAD_ROWS).unlink(missing_ok=True)

    def pictures(place: int) -> list[Image.Image]:
        return made.source.pictures(made.task, asked[place])

    write_whole(output / "report.html", report(results, answered, bad, pictures))
    # Last, so that a folder with results is a whole one.
    write_whole(output / "results.json", json.dumps(results, indent=2) + "\n")
