"""Early exit: what is still masked is filled at once when the model is sure of the answer.

Sure means that the most likely token leads the second by enough: g, the mean over watched answer
cells of logit 1 - logit 2, decided cells included, reaches a threshold that falls with progress
p = i / T in step i = 1, 2, ... of T.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.propose import spread
from mmdiff.decoding.settings import PLAIN, Decoding, with_options
from mmdiff.decoding.stop import STOPS, EndOfText, Seen


class Sure(EndOfText):
    """Ends of text count as in `end_of_text`."""

    known: ClassVar[dict[str, float]] = {}

    def __init__(self, options: dict[str, Any], settings: Decoding = PLAIN) -> None:
        self.options = with_options("stop", options, self.known)
        self.steps = settings.steps or settings.max_new_tokens
        self.taken: Counter[int] = Counter()

    def threshold(self, progress: float) -> float:
        raise NotImplementedError

    def watched(self, canvas: Canvas) -> Tensor:
        """(b, L) bool: the cells that must be sure."""
        return canvas.writable

    def wants(self, canvas: Canvas) -> Tensor:
        return canvas.masked | self.watched(canvas)

    def __call__(self, canvas: Canvas, end_ids: Tensor, seen: Seen | None = None) -> None:
        assert seen is not None
        best = canvas.ids.clone()
        two = seen.proposal.logits.float().topk(2, dim=1)
        best[seen.need] = two.indices[:, 0]
        gap = spread(two.values[:, 0] - two.values[:, 1], seen.need, 0.0)
        watched = self.watched(canvas)
        mean = (gap * watched).sum(1) / watched.sum(1).clamp(min=1)
        least = []
        for row in seen.rows.tolist():
            self.taken[row] += 1
            least.append(self.threshold(min(1.0, self.taken[row] / self.steps)))
        sure = mean >= torch.tensor(least, device=canvas.device)
        canvas.write(best, canvas.masked & seen.need & sure[:, None])
        super().__call__(canvas, end_ids, seen)


@STOPS.register("prophet")
class Prophet(Sure):
    """Watches `cells` answer cells from number `start` on; thresholds `early`, `mid` from a third
    and `late` from two thirds of the steps on (Prophet, arXiv:2508.19982)."""

    known: ClassVar[dict[str, float]] = {
        "start": 0, "cells": 5, "early": 7.5, "mid": 5.0, "late": 2.5
    }  # fmt: skip

    def watched(self, canvas: Canvas) -> Tensor:
        number = torch.arange(canvas.shape[1], device=canvas.device) - canvas.prompt_length
        start, cells = self.options["start"], self.options["cells"]
        return (number >= start) & (number < start + cells) & canvas.valid

    def threshold(self, progress: float) -> float:
        third = "early" if progress < 0.33 else "mid" if progress < 0.67 else "late"
        return self.options[third]


@STOPS.register("sched")
class SchED(Sure):
    """Watches the whole answer; the threshold falls from `first` to `last` linearly (SchED,
    arXiv:2512.02892; its constants are not published, these are Prophet's)."""

    known: ClassVar[dict[str, float]] = {"first": 7.5, "last": 2.5}

    def threshold(self, progress: float) -> float:
        first, last = self.options["first"], self.options["last"]
        return last + (first - last) * self.left(progress)

    def left(self, progress: float) -> float:
        """The part of the way still to fall: 1 at the start, 0 at the end."""
        return 1 - progress


@STOPS.register("sched_cosine")
class SchEDCosine(SchED):
    """As sched, along half a cosine."""

    def left(self, progress: float) -> float:
        return (1 + math.cos(math.pi * progress)) / 2


@STOPS.register("sched_exponential")
class SchEDExponential(SchED):
    """As sched, by exp(-`rate` p)."""

    known: ClassVar[dict[str, float]] = SchED.known | {"rate": 4.0}

    def left(self, progress: float) -> float:
        return math.exp(-self.options["rate"] * progress)
