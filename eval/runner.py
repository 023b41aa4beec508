"""A benchmark run: questions asked in batches, answers kept, scores written.

    results = mmdiff.evaluate(model, "mmmu", data="MMMU", output="runs/mmmu", limit=100, steps=8)

The folder holds `results.json`, `samples.jsonl` with every answer, `report.html`, and
`bad_rows.jsonl` where rows could not be asked or scored. The same call goes on where a killed one
stopped, and asks nothing again. Under `accelerate launch` the processes share the questions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.errors import DataError, ImageError, InputError, SettingError
from mmdiff.eval.fingerprint import fingerprint
from mmdiff.eval.options import SAMPLES, check_way, choose
from mmdiff.eval.report import report
from mmdiff.eval.results import Answered, results_of
from mmdiff.eval.samples import Sample, Samples, key_of, write_whole
from mmdiff.eval.tasks.base import Judged, Task, make
from mmdiff.eval.tasks.source import Asked, Bad, Source, open_source, printable, questions
from mmdiff.heads.base import HEADS

if TYPE_CHECKING:
    from accelerate import PartialState
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
    by: str = "generate",
    samples: int = SAMPLES,
    name: str = "",
    batch_size: int = BATCH,
    progress: Callable[[int], None] | None = None,
    **decoding: Any,
) -> dict[str, Any]:
    """Run a benchmark and write its folder; returns what `results.json` holds.

    Args:
        task: `mmmu`, `vqav2`, ..., or a `plan` made before; `data` and what belongs to it then
            stand in the plan.
        by: `generate`; or `letters` or `texts`, the option of the highest likelihood where a
            question has options, from `samples` masks for each of more than one token.
        name: how the model is called in the results.
        progress: hears how many questions are done, those of an earlier run first.

    Raises:
        SettingError: an unknown benchmark or setting.
        DataError: data that cannot be read, or an output that cannot be written. Bad rows raise
            nothing: they are counted in the results and listed in `bad_rows.jsonl`.
    """
    from accelerate.utils import broadcast_object_list, gather_object

    made = task if isinstance(task, Plan) else plan(make(task, metric), data, limit, image_root)
    given = settings_of(made.task, decoding)
    settings = model.decoding(given, HEADS.get(made.task.head).defaults)
    if not isinstance(settings.seed, int):
        raise SettingError("seed must be one number for a benchmark; every question gets it")
    check_way(made.task, by, model)
    print_ = fingerprint(model)
    how = Way(by, samples, settings.seed, given)
    every = asdict(settings)
    keys = [key_of(each.digest, print_, how.key(each, every)) for each in made.asked]
    state = processes()
    kept = Samples(Path(output), state.process_index)
    refused = answer_all(model, made, keys, how, kept, batch_size, progress, state)
    # which also waits for every answer
    refused = dict(sorted(gather_object(list(refused.items()))))
    results: list[Any] = [None]
    if state.is_main_process:
        kept.read_all()
        answered, asked, bad = judge(made, keys, kept, refused)
        model_facts = {"name": name or str(model.config.name_or_path or ""), "fingerprint": print_}
        found = results_of(made.task, answered, settings, model_facts, bad, by)
        found["answers"] = {"by": by} | ({} if by == "generate" else {"samples": samples})
        found["data"] = {"path": made.source.name, "limit": made.limit} | found["data"]
        finish(Path(output), made, kept, answered, bad, found, asked)
        results = [found]
    return broadcast_object_list(results)[0]


def processes() -> PartialState:
    """The processes that share this run: one, or as many as `accelerate launch` has started."""
    from accelerate import PartialState

    return PartialState()


def answer_all(
    model: MMDiffModel,
    made: Plan,
    keys: Sequence[str],
    how: Way,
    kept: Samples,
    batch_size: int,
    progress: Callable[[int], None] | None,
    state: PartialState,
) -> dict[int, Bad]:
    """Ask what is not answered yet, batch by batch, of several processes each its share; returns
    the questions that were refused."""
    refused: dict[int, Bad] = {}
    step = state.num_processes * batch_size
    for start in range(0, len(keys), step):
        own = start + state.process_index * batch_size
        batch = range(own, min(len(keys), own + batch_size))
        todo = [n for n in batch if keys[n] not in kept.known]
        answers = ask(model, made, [made.asked[n] for n in todo], how) if todo else []
        new = []
        for n, answer in zip(todo, answers, strict=True):
            if isinstance(answer, Bad):
                refused[n] = answer
            else:
                new.append(_sample(keys[n], made.asked[n], answer))
        if new:
            kept.add(new)
        if progress:
            progress(min(len(keys), start + step) - start)
    return refused


def judge(
    made: Plan, keys: Sequence[str], kept: Samples, refused: dict[int, Bad]
) -> tuple[list[Answered], list[Asked], list[Bad]]:
    """The answered questions with their marks, and all bad rows."""
    good = [n for n in range(len(keys)) if n not in refused]
    alone = {  # whose partner was refused
        good[place]: _bad(made.asked[good[place]], error)
        for place, error in made.task.check([made.asked[n].question for n in good])
    }
    good = [n for n in good if n not in alone]
    asked, samples = [made.asked[n] for n in good], [kept.known[keys[n]] for n in good]
    marks = made.task.marks([each.question for each in asked], [each.text for each in samples])
    answered = [
        Answered(Judged(each.question, sample.text, mark), sample)
        for each, sample, mark in zip(asked, samples, marks, strict=True)
    ]
    return answered, asked, [*made.bad, *refused.values(), *alone.values()]


def settings_of(task: Task, decoding: dict[str, Any]) -> dict[str, Any]:
    """The settings asked for, over the length that the benchmark's answers need."""
    return ({"max_new_tokens": task.cells} if task.cells else {}) | decoding


@dataclass(frozen=True)
class Way:
    """How answers are found."""

    by: str
    samples: int
    seed: int
    given: dict[str, Any]

    def scores(self, asked: Asked) -> bool:
        """Whether a question's options are scored; a question without any is always generated."""
        return self.by != "generate" and bool(asked.question.options)

    def key(self, asked: Asked, settings: dict[str, Any]) -> Any:
        """What can change the answer to a question, of all decoding settings and its own."""
        return [self.by, self.samples, self.seed] if self.scores(asked) else settings


def ask(model: MMDiffModel, made: Plan, asked: Sequence[Asked], how: Way) -> list[Generation | Bad]:
    """An answer for each question, or why there is none."""
    answers: dict[int, Generation | Bad] = {}
    inputs: dict[int, tuple[list[Image.Image], Any]] = {}
    drawn: dict[tuple[Any, int], list[Image.Image]] = {}  # shown to several questions, read once
    for number, each in enumerate(asked):
        address = (each.address[0], len(each.question.images))
        try:
            pictures = drawn.get(address) or made.source.pictures(made.task, each)
            drawn[address] = pictures
            if how.scores(each):
                answers[number] = choose(
                    model, made.task, pictures, each.question, how.by, how.samples, how.seed
                )
            else:
                inputs[number] = (pictures, each.question.text)
        except (DataError, InputError) as error:
            answers[number] = _bad(each, error)
    replies = _run(model, made.task.head, list(inputs.values()), how.given)
    for number, reply in zip(inputs, replies, strict=True):
        refused = isinstance(reply, Exception)
        answers[number] = _bad(asked[number], reply) if refused else reply
    return [answers[number] for number in range(len(asked))]


def _run(
    model: MMDiffModel, head: str, inputs: list[tuple[list[Any], Any]], given: dict[str, Any]
) -> list[Any]:
    """A Generation for each input. Where a batch is refused its questions are asked one by one, and
    the error stands in place of an answer."""
    try:
        return list(model.run(head, inputs, batch_size=max(1, len(inputs)), **given))
    except (InputError, ImageError) as error:
        if len(inputs) == 1:
            return [error]
    return [reply for each in inputs for reply in _run(model, head, [each], given)]


def _bad(asked: Asked, error: Exception) -> Bad:
    kind = getattr(error, "kind", "refused")
    return Bad(asked.place, asked.question.id, kind, printable(str(error)))


def _sample(key: str, asked: Asked, made: Generation) -> Sample:
    identifier = asked.question.id
    return Sample(key, identifier, made.text, made.nfe, made.length, round(made.seconds, 6))


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
