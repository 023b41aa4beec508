"""The built-in tabletop world: questions about drawn scenes (`tabletop`), about pairs of colour and
shape that no training scene shows (`tabletop:vqa_held_out`), or captions (`tabletop:caption`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmdiff.data.worlds.tabletop import caption_ok, vqa_ok
from mmdiff.data.worlds.tabletop_sets import SetItem, load_set
from mmdiff.errors import SettingError
from mmdiff.eval.tasks import base
from mmdiff.eval.tasks.base import TASKS, Mark, Question, Task

SETS = ("vqa", "vqa_held_out", "caption")


@TASKS.register("tabletop")
class Tabletop(Task):
    """`images` are scenes, drawn when they are asked about."""

    name = "tabletop"
    cells = None

    def __init__(self, option: str = "", metric: str | None = None) -> None:
        super().__init__("", metric)
        self.set = option or "vqa"
        if self.set not in SETS:
            raise SettingError(f"tabletop:{option}: choose one of {', '.join(SETS)}")
        self.head = "caption" if self.set == "caption" else "answer"
        self.protocol = f"tabletop_{self.set}"

    def rows(self) -> Iterator[dict[str, Any]]:
        """The set's scenes as rows."""
        for number, item in enumerate(load_set(self.set)):
            yield {"number": number, "item": item}

    def questions(self, row: dict[str, Any]) -> Iterator[Question]:
        item: SetItem = row["item"]
        number = row["number"]
        if self.set == "caption":
            count = f"{len(item.scene.objects)} objects"
            groups = {"objects": count}
            yield Question(str(number), None, item.caption, (item.scene,), groups=groups)
        for place, qa in enumerate(item.qas):
            groups = {"kind": qa.kind}
            identifier = f"{number}/{place + 1}"
            yield Question(identifier, qa.question, qa.answer, (item.scene,), groups=groups)

    def mark(self, question: Question, said: str) -> Mark:
        if self.set == "caption":
            right = caption_ok(said, question.images[0])
        else:
            right = vqa_ok(said, question.answer)
        return base.plain_mark(right, said.strip() or None)
