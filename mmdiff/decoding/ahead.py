"""Speculation in one canvas, for models in which a cell hears nothing of what lies behind it.

Any-subset speculative decoding (arXiv:2504.20456, gabeguo/any-order-speculative-decoding) drafts
several cells at once and has one more call say what the model thinks of each, given those before
it. That takes attention in which a decided cell changes nothing that was said before it: causal,
and with cell i scored from cell i - 1 (`shift`). The subset is decided from the left. In any other
layout each of these scores is a canvas of its own, which is what `freedave` does.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.settings import Decoding, parse_rule
from mmdiff.decoding.speculate import SPECULATES, Remembered, Request, Said
from mmdiff.errors import SettingError

CAUSAL = ("causal", "causal_block")
STOPS_BY_IDS = ("end_of_text", "cut", "block", "repeats", "batch_block_end", "none")


@SPECULATES.register("assd")
class Ahead(Remembered):
    """A call holds a draft of the next `drafts` cells. What it says of a cell is what the model
    says then if the cells before came out as drafted; the published code draws drafts and verdicts
    in calls of their own, here each call does both.

    Exact at every temperature: a cell is drawn with the numbers it is drawn with anyway and the
    draft only decides whether that needs a call, in place of accepting with chance min(1, q / p).
    """

    name = "assd"
    known: ClassVar[dict[str, float]] = {"drafts": 10}
    needs: ClassVar[dict[str, Any]] = {
        "order": "left_to_right", "accept": "schedule", "steps": None
    }  # fmt: skip

    def __init__(self, request: Request, options: dict[str, Any]) -> None:
        super().__init__(request, options)
        config = request.model.config
        layout = request.canvas.layout or config.attention_layout
        if layout not in CAUSAL or not config.shift:
            raise SettingError(
                "speculate=assd needs a model with causal attention and shifted logits, this one's "
                f"attention is {layout}{', shifted' * config.shift}; use speculate=freedave"
            )
        _check(request.settings)
        self.said: dict[int, tuple[Tensor, Said]] = {}  # by row: the ids (L,) it was said of

    def find(self, row: int, canvas: Canvas, need: Tensor) -> Said | None:
        if row not in self.said:
            return None
        ids, said = self.said[row]
        first = int(need[row].long().argmax())
        told = bool((said[0] | ~need[row]).all())
        return said if told and torch.equal(ids[:first], canvas.ids[row, :first]) else None

    def call(self, canvas: Canvas, need: Tensor, rows: Tensor) -> None:
        wide, cells = canvas.select(rows), need[rows]
        wide.ids = torch.stack([self._draft(r, canvas, need) for r in rows.tolist()])
        for row, *said in zip(
            rows.tolist(), wide.ids, cells, self.scored(wide, cells, rows), strict=True
        ):
            self.said[row] = said[0], (said[1], said[2])

    def _draft(self, row: int, canvas: Canvas, need: Tensor) -> Tensor:
        """(L,) ids of a row with the best tokens, by what was said last, in its next cells."""
        ids = canvas.ids[row].clone()
        if row in self.said:
            _, (cells, logits) = self.said[row]
            best = torch.zeros_like(ids)
            best[cells] = logits.index_fill(1, self.forbidden, float("-inf")).argmax(1)
            coming = need[row] & cells & (need[row].cumsum(0) <= self.drafts)
            ids = torch.where(coming, best, ids)
        return ids

    def select(self, rows: Tensor) -> None:
        super().select(rows)
        old = enumerate(rows.tolist())
        self.said = {new: self.said[row] for new, row in old if row in self.said}


def _check(settings: Decoding) -> None:
    """One cell a step, always the next one, and nothing that looks at what is said of others."""
    wanted = Ahead.needs | {"order_temperature": 0, "late": (), "remask": "none"}
    for name, value in wanted.items():
        if getattr(settings, name) != value:
            raise SettingError(
                f"speculate=assd decides the next cell in every step; {name} must be {value}"
            )
    stop = parse_rule(settings.stop)[0]
    if stop not in STOPS_BY_IDS:
        raise SettingError(
            f"speculate=assd knows the next cell alone, and stop={stop} looks at others; "
            f"use stop={' or '.join(STOPS_BY_IDS)}"
        )
