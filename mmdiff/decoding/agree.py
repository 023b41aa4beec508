"""Guided diffusion: a small autoregressive model says how many cells may be decided at once.

The diffusion model proposes a token for every open cell; the guide reads the text with all of them
in it, and they are accepted from the left up to the first one with which it does not agree, always
the first, and none behind an end of the text (FlashDLM, arXiv:2505.21467,
ZhanqiuHu/flash-dlm-experimental `guided_diff_utils.py`).

Every token is the diffusion model's own, but cells accepted together did not see each other: what
comes out may differ from one cell per step (lossy).
"""

from __future__ import annotations

import math
import time
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.draws import Draws
from mmdiff.decoding.guide_model import Reader, open_guide
from mmdiff.decoding.propose import spread
from mmdiff.decoding.settings import Decoding, between, whole, with_options
from mmdiff.decoding.speculate import SPECULATES, Request
from mmdiff.decoding.stop import Seen
from mmdiff.decoding.translate import Reading, translator
from mmdiff.errors import SettingError


@SPECULATES.register("guided")
class Agreed:
    """The guide agrees with a token among its `top` most likely ones that is at least `share` times
    as likely as the likeliest. An accept rule: where all that is open is agreed with, all is taken.

    A cell that a picture fills is not read to the guide. Where the vocabularies differ, a token is
    agreed with when the guide agrees with each of its own that spell any of it (Reading).
    """

    needs: ClassVar[dict[str, Any]] = {"order": "left_to_right", "accept": "schedule"}

    def __init__(self, request: Request, options: dict[str, Any]) -> None:
        chosen = with_options("speculate=guided", options, {"top": 1, "share": 0.0})
        self.top, self.share = whole("speculate=guided: top", chosen["top"]), chosen["share"]
        model, settings = request.model, request.settings
        _check(settings, self.share)
        assert settings.guide is not None
        guide = open_guide(settings.guide, model.device, model.dtype)
        self.ends = set(request.end_ids.tolist())
        self.translate = translator(model, guide, self.ends)
        self.reader = Reader(guide.network)
        self.unread = unread(request.canvas)
        self.scoring, self.accept = request.cache, self
        self.nfe = torch.zeros_like(request.canvas.ids[:, 0])  # the guide's calls, by row
        self.seconds = 0.0

    def see(self, seen: Seen) -> None:
        """Remember the proposed tokens (b, L)."""
        self.tokens = spread(seen.proposal.tokens, seen.need, 0)

    def __call__(
        self, score: Tensor, probability: Tensor, canvas: Canvas, rows: Tensor, draws: Draws
    ) -> Tensor:
        is_open = score > float("-inf")
        ids = torch.where(is_open, self.tokens, canvas.ids).tolist()
        hidden = self.unread[rows] | (canvas.masked & ~is_open)
        columns = [_columns(*row) for row in zip(is_open, hidden, strict=True)]
        read = [
            self.translate([ids[i][c] for c in told], told.index(first))
            for i, (told, first) in enumerate(columns)
        ]
        agreed = self.agreed(rows.tolist(), read)
        accept = torch.zeros_like(is_open)
        # Late ids rank last, so that the run ends before one.
        ranked = score.argsort(dim=1, descending=True, stable=True).tolist()
        for i, ((told, first), cells) in enumerate(zip(columns, agreed, strict=True)):
            known = dict(zip(told[told.index(first) :], cells, strict=True))
            ends = {column for column in known if ids[i][column] in self.ends}
            coming = is_open[i].nonzero()[:, 0].tolist()
            accept[i, run(coming, ranked[i], known, ends)] = True
        self.nfe[rows] += 1
        return accept

    def agreed(self, numbers: list[int], read: list[Reading]) -> list[list[bool]]:
        """Whether the guide agrees with each cell from the first open one on, row by row."""
        # Nothing stands before a row's first token, so nothing is known of it.
        first = max(1, min(reading.spans[0].start for reading in read))
        began = time.perf_counter()
        logits = self.reader(numbers, [reading.ids for reading in read], first)
        wanted = [reading.ids[first:] for reading in read]
        padded = [own + [0] * (logits.shape[1] - len(own)) for own in wanted]
        ids = torch.tensor(padded, dtype=torch.long, device=logits.device)
        good = agrees(logits, ids, self.top, self.share).tolist()
        self.seconds += time.perf_counter() - began
        return [
            [
                len(span) > 0 and span.start >= first and all(good[i][g - first] for g in span)
                for span in reading.spans
            ]
            for i, reading in enumerate(read)
        ]


def agrees(logits: Tensor, ids: Tensor, top: int, share: float) -> Tensor:
    """(B, N) bool of ids (B, N) and logits (B, N, V): fewer than `top` ids are more likely, and
    p(id) >= share p(the likeliest)."""
    logits = logits.float()
    own = logits.gather(-1, ids[..., None])
    least = logits.amax(-1) + (math.log(share) if share else -math.inf)
    return ((logits > own).sum(-1) < top) & (own[..., 0] >= least)


def run(coming: list[int], ranked: list[int], agreed: dict[int, bool], ends: set[int]) -> list[int]:
    """The open columns to accept: of `coming`, from the left, those agreed with, as long as the
    order `ranked` takes them in turn, up to one of `ends`; the best ranked one where there is
    none."""
    taken: list[int] = []
    for column, next_best in zip(coming, ranked, strict=False):
        if column != next_best or not agreed[column] or not ends.isdisjoint(taken):
            break
        taken.append(column)
    return taken or ranked[:1]


def unread(canvas: Canvas) -> Tensor:
    """(B, L) bool: padding, and the cells of pictures."""
    pictured = torch.zeros_like(canvas.valid)
    if canvas.features is not None:
        pictured.view(-1)[canvas.features.cells] = True
    return pictured | ~canvas.valid


def _columns(is_open: Tensor, hidden: Tensor) -> tuple[list[int], int]:
    """The columns of a row (L,) that the guide reads, up to the last open one, and the first open
    one."""
    opened = is_open.nonzero()[:, 0].tolist()
    return [c for c in (~hidden).nonzero()[:, 0].tolist() if c <= opened[-1]], opened[0]


def _check(settings: Decoding, share: float) -> None:
    if settings.guide is None:
        raise SettingError("speculate=guided needs a small autoregressive model: guide=FOLDER")
    between("speculate=guided: share", share, 0, 1)
    for name, value in (*Agreed.needs.items(), ("codes", None)):
        if getattr(settings, name) != value:
            raise SettingError(
                "speculate=guided accepts text from the left, as far as its guide agrees; "
                f"{name} must be {value}"
            )
