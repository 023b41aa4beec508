"""COCO captions: CIDEr, with BLEU, ROUGE-L and METEOR beside it. Reads rows with all captions of a
picture, or the official annotation file (captions_val2017.json, `--image-root val2017`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmdiff.data.json_files import parse
from mmdiff.data.readers import Found
from mmdiff.errors import DataError, MissingExtraError
from mmdiff.eval.metrics import caption, meteor
from mmdiff.eval.metrics.ptb import tokenized
from mmdiff.eval.tasks import base
from mmdiff.eval.tasks.base import TASKS, BadQuestion, Judged, Mark, Question, Task

COLUMNS = ("answer", "captions", "caption", "references")


class Annotations:
    """The official annotation file: {"images": [{"id", "file_name"}], "annotations": [{"image_id",
    "caption"}]}; a row for each picture."""

    def __init__(self, data: dict[str, Any]) -> None:
        captions: dict[Any, list[Any]] = {}
        for each in data["annotations"]:
            captions.setdefault(each["image_id"], []).append(each["caption"])
        self.rows = [
            {"id": each["id"], "image": each["file_name"], "captions": captions.get(each["id"])}
            for each in data["images"]
        ]

    def scan(self) -> Iterator[Found]:
        for number, row in enumerate(self.rows):
            yield Found(number, f"image {number + 1}", row, number / len(self.rows))

    def fetch(self, address: Any) -> Any:
        return self.rows[address]


@TASKS.register("coco_caption")
class COCOCaption(Task):
    name = "coco_caption"
    protocol = "coco_cider"
    head = "caption"
    cells = 64
    splits = ("val", "validation", "test")

    def __init__(self, option: str = "", metric: str | None = None) -> None:
        super().__init__(option, metric)
        self.missing = ""

    def reader(self, path: Path) -> Annotations | None:
        if path.suffix != ".json" or not path.is_file():
            return None
        data = parse(path.read_bytes())
        if not isinstance(data, dict):
            return None
        try:
            return Annotations(data)
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: is no file of COCO captions ({error!r})") from None

    def question(self, row: dict[str, Any]) -> Question:
        name = next((each for each in COLUMNS if row.get(each) is not None), COLUMNS[0])
        references = base.texts(row, name)
        if not references:
            raise BadQuestion("bad_answer", f"{name} holds no caption")
        return Question(
            base.identifier(row, "image_id", "question_id", "id"),
            "Provide a one-sentence caption for the provided image.",
            references,
            (base.image(row, "image"),),
        )

    def marks(self, questions: Sequence[Question], said: Sequence[str]) -> list[Mark]:
        captions, references = cut(questions, said)
        scores = caption.cider(captions, references)
        pairs = zip(scores, captions, strict=True)
        return [base.plain_mark(score, text or None) for score, text in pairs]

    def figures(self, judged: Sequence[Judged]) -> dict[str, float]:
        captions, references = cut([j.question for j in judged], [j.said for j in judged])
        bleu, _ = caption.bleu(captions, references)
        figures = {f"bleu_{order}": score for order, score in enumerate(bleu, start=1)}
        rouge = map(caption.rouge_l, captions, references)
        figures["rouge_l"] = sum(rouge) / max(1, len(captions))
        try:
            figures["meteor"], _ = meteor.meteor(captions, references)
        except MissingExtraError as error:
            self.missing = f"no METEOR: {error}"
        return figures

    def notes(self) -> list[str]:
        return [self.missing] if self.missing else []


def cut(questions: Sequence[Question], said: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Captions and references as the tokens that are counted."""
    references = [[tokenized(text) for text in question.answer] for question in questions]
    return [tokenized(text) for text in said], references
