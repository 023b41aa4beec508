"""LLaVA JSON: every answer of every conversation, given the turns before it. `nlvr` is one such
data set; `llava:FILE.json --metric NAME` any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmdiff.data.rows import read_row
from mmdiff.eval.metrics import anls, caption, exact, relaxed
from mmdiff.eval.metrics.ptb import tokenized
from mmdiff.eval.tasks import base
from mmdiff.eval.tasks.base import TASKS, Mark, Question, Task
from mmdiff.registry import Registry

Metric = Callable[[Sequence[str], Sequence[str]], Sequence[float]]  # (answers, said) -> scores

METRICS: Registry[Metric] = Registry("metric")


@METRICS.register("exact")
def _exact(answers: Sequence[str], said: Sequence[str]) -> list[float]:
    return [float(exact.exact(*pair)) for pair in zip(answers, said, strict=True)]


@METRICS.register("anls")
def _anls(answers: Sequence[str], said: Sequence[str]) -> list[float]:
    return [anls.anls([answer], text) for answer, text in zip(answers, said, strict=True)]


@METRICS.register("relaxed")
def _relaxed(answers: Sequence[str], said: Sequence[str]) -> list[float]:
    return [
        float(relaxed.relaxed(text, answer)) for answer, text in zip(answers, said, strict=True)
    ]


@METRICS.register("cider")
def _cider(answers: Sequence[str], said: Sequence[str]) -> list[float]:
    return caption.cider(
        [tokenized(text) for text in said], [[tokenized(answer)] for answer in answers]
    )


@METRICS.register("rouge_l")
def _rouge_l(answers: Sequence[str], said: Sequence[str]) -> list[float]:
    pairs = zip(answers, said, strict=True)
    return [caption.rouge_l(tokenized(text), [tokenized(answer)]) for answer, text in pairs]


LONG = ("cider", "rouge_l")  # metrics of sentences


@TASKS.register("llava")
class LLaVA(Task):
    name = "llava"
    head = "chat"

    def __init__(self, option: str = "", metric: str | None = None) -> None:
        super().__init__()
        self.file = option  # the data file, where it stands in the task's name
        self.protocol = metric or "exact"
        self.metric = METRICS.get(self.protocol)
        self.cells = 64 if self.protocol in LONG else 16

    def questions(self, row: dict[str, Any]) -> Iterator[Question]:
        read = read_row(row)
        several = len(read.answers) > 1
        for turn, place in enumerate(read.answers):
            before = list(read.messages[:place])
            users = [message["content"] for message in before if message["role"] == "user"]
            count = sum(part["type"] == "image" for parts in users for part in parts)
            answer = read.messages[place]["content"]
            yield Question(
                f"{read.id}/{turn + 1}" if several and read.id else read.id,
                before,
                answer,
                read.images[:count],
                groups=self.groups(row, answer),
            )

    def groups(self, row: dict[str, Any], answer: str) -> dict[str, str]:
        """The row's own group, where it names one."""
        return {"category": str(row["category"])} if row.get("category") else {}

    def marks(self, questions: Sequence[Question], said: Sequence[str]) -> list[Mark]:
        scores = self.metric([question.answer for question in questions], said)
        pairs = zip(scores, said, strict=True)
        return [base.plain_mark(score, text.strip() or None) for score, text in pairs]


@TASKS.register("nlvr")
class NLVR(LLaVA):
    """Cornell NLVR as LLaVA rows: is the sentence about the picture true?"""

    name = "nlvr"

    def __init__(self, option: str = "", metric: str | None = None) -> None:
        Task.__init__(self, option, metric)
        super().__init__()

    def groups(self, row: dict[str, Any], answer: str) -> dict[str, str]:
        return {"answer": answer[:20]}
