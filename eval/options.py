"""Options scored by their likelihood, in place of an answer that is generated and parsed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mmdiff.decoding.settings import Decoding
from mmdiff.errors import SettingError
from mmdiff.eval.metrics.letter import LETTERS
from mmdiff.heads.base import HEADS, Example
from mmdiff.heads.run import Generation, compose_canvas

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from mmdiff.diffusion.likelihood import Bound
    from mmdiff.eval.tasks.base import Question, Task
    from mmdiff.model import MMDiffModel

SAMPLES = 32  # masks drawn for an option of more than one token
ROWS = 32  # canvases scored together


def check_way(task: Task, way: str, model: MMDiffModel | None = None) -> None:
    """Raise SettingError for a way of answering that the task, or the model, has not."""
    if way not in task.ways:
        raise SettingError(f"--by {way}: {task.name} knows {', '.join(task.ways)}")
    if way != "generate" and model is not None and not hasattr(model, "score"):
        raise SettingError(f"--by {way}: this model scores no options; use --by generate")


def choose(
    model: MMDiffModel,
    task: Task,
    images: list[Image.Image],
    question: Question,
    way: str,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Generation:
    """The option of the highest likelihood: its letter, or its text where the task has no letters.

    `letters` scores the letters as answers, `texts` the options' texts. The answer's `nfe` counts
    the canvases that were scored, `length` the tokens of all options.
    """
    began = time.perf_counter()
    letters = LETTERS[: len(question.options)]
    candidates = list(letters) if way == "letters" else list(question.options)
    processor = model.processor
    assert processor is not None
    ids = [processor.encode(candidate) for candidate in candidates]
    asked = HEADS.get(task.head)().compose(processor, images, question.text)
    found = bounds(model, asked, ids, samples, seed)
    best = min(range(len(found)), key=lambda place: found[place].nll)
    said = letters[best] if "letters" in task.ways else candidates[best]
    drawn = [bound.samples for bound, tokens in zip(found, ids, strict=True) if len(tokens) > 1]
    nfe = sum(drawn) + (len(drawn) < len(found))
    return Generation(said, nfe, time.perf_counter() - began, [], sum(map(len, ids)))


def bounds(
    model: MMDiffModel,
    asked: Example,
    candidates: Sequence[Sequence[int]],
    samples: int = SAMPLES,
    seed: int = 0,
) -> list[Bound]:
    """The bound on -log p of every candidate answer's ids, in nats (`diffusion.likelihood`).

    No end-of-text is scored. Candidates of one length share their masks, so that their differences
    carry no noise of the draw. One token is exact, and one canvas serves all candidates of one.
    Raises InputError for a prompt that is too long.
    """
    import torch

    from mmdiff.diffusion.likelihood import bound

    alone: Tensor | None = None
    found = []
    for ids in candidates:
        answer = torch.tensor(ids, device=model.device)
        scorer = partial(_score, model, asked, ids)
        if len(ids) == 1:
            alone = scorer(torch.ones(1, 1, dtype=torch.bool)) if alone is None else alone
            found.append(bound(partial(_same, alone), answer, 1, seed))
        else:
            found.append(bound(scorer, answer, samples, seed))
    return found


def _same(logits: Tensor, masks: Tensor) -> Tensor:
    return logits


def _score(model: MMDiffModel, asked: Example, ids: Sequence[int], masks: Tensor) -> Tensor:
    """Logits (K, V) of the masked cells of an answer behind a prompt, for masks (samples, N)."""
    import torch

    with torch.inference_mode():
        return torch.cat([_rows(model, asked, ids, part) for part in masks.split(ROWS)])


def _rows(model: MMDiffModel, asked: Example, ids: Sequence[int], masks: Tensor) -> Tensor:
    processor = model.processor
    assert processor is not None
    rows = []
    for holes in masks.tolist():
        pairs = zip(ids, holes, strict=True)
        template = [processor.mask_id if hole else token for token, hole in pairs]
        rows.append(replace(asked, template=template, holes=holes))
    canvas = compose_canvas(model, processor, rows, Decoding(max_new_tokens=len(ids)))
    return model.score(canvas, canvas.masked)
