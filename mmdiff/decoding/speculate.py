"""Exact speculation: fewer calls, the same tokens.

FreeDave (arXiv:2510.00294): one call scores the canvas as it is and as it will probably be after
the next steps. Where a later step finds the canvas just so, its logits are there already. Nothing
else of the loop changes, so every rule decides what it decides without, from the same logits up to
the rounding of a larger batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.cache import Cache
from mmdiff.decoding.choose import ORDERS
from mmdiff.decoding.draws import Draws, most_likely, top
from mmdiff.decoding.guide import Guided
from mmdiff.decoding.propose import Proposal, log_odds, spread
from mmdiff.decoding.settings import Decoding, whole, with_options
from mmdiff.errors import SettingError
from mmdiff.registry import Registry

Scoring = Cache | Guided
Speculate = Callable[[Scoring, Decoding, dict[str, Any], Tensor], "Scoring | Drafted"]
SPECULATES: Registry[Speculate] = Registry("speculate")


@SPECULATES.register("none")
def plainly(
    cache: Scoring, settings: Decoding, options: dict[str, Any], forbidden: Tensor
) -> Scoring:
    """One canvas of a row per call."""
    with_options("speculate=none", options, {})
    return cache


@SPECULATES.register("freedave")
class Drafted:
    """Scores through `cache`, `drafts` canvases of a row per call at most.

    A draft takes the cells that the last scored canvas was surest of, as many more per step as the
    last step took. `calls` (b,) is 1 for rows that needed a call in this step, 0 for the others.
    """

    prompt_only = False

    def __init__(
        self, cache: Scoring, settings: Decoding, options: dict[str, Any], forbidden: Tensor
    ) -> None:
        drafts = with_options("speculate=freedave", options, {"drafts": 4})["drafts"]
        self.drafts = whole("speculate=freedave: drafts", drafts)
        if isinstance(cache, Guided) or not cache.prompt_only:
            raise SettingError(
                "speculate=freedave scores canvases side by side; use cache=none or prefix and no "
                "guidance with it"
            )
        self.cache, self.forbidden, self.start = cache, forbidden, cache.start
        self.order = settings.order
        self.total = cache.total
        self.calls: Tensor | int = 1
        # By row still open: scored canvases by their ids, which cells (L,), and logits (n, V).
        self.known: dict[int, dict[bytes, tuple[Tensor, Tensor]]] = {}
        self.seen: tuple[Tensor, Tensor, Tensor] | None = None  # masked, need, logits: last step

    def score(self, canvas: Canvas, need: Tensor) -> Tensor:
        names = _names(canvas.ids)
        missing = [r for r, name in enumerate(names) if not self._has(r, name, need[r])]
        if missing:
            self._call(canvas, need, torch.tensor(missing, device=need.device))
        parts = []
        for row, name in enumerate(names):
            cells, logits = self.known[row][name]
            parts.append(logits[need[row][cells]])
        made = torch.cat(parts)
        self.calls = torch.zeros_like(canvas.ids[:, 0])
        self.calls[missing] = 1
        self.seen = canvas.masked, need, made
        return made.clone()  # the loop forbids ids in place

    def _has(self, row: int, name: bytes, need: Tensor) -> bool:
        cells, _ = self.known.get(row, {}).get(name, (None, None))
        return cells is not None and bool((cells | ~need).all())

    def _call(self, canvas: Canvas, need: Tensor, rows: Tensor) -> None:
        """Score these rows and drafts of what becomes of them."""
        owner, ids, masked = self._drafts(canvas, need, rows)
        every = canvas.select(owner)
        wide = replace(every, ids=ids, masked=masked)
        cells = need[owner] | wide.open_cells()
        view = self.cache.view(owner)
        logits = view.score(wide, cells).split(cells.sum(1).tolist())
        self.total += view.total - self.cache.total
        self.known.update({row: {} for row in rows.tolist()})
        for row, name, where, scores in zip(
            owner.tolist(), _names(ids), cells, logits, strict=True
        ):
            self.known[row][name] = where, scores

    def _drafts(self, canvas: Canvas, need: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (n,), ids and masked (n, L) of the canvases to score: `rows` as they are, then after
        one step, two, ..."""
        now = canvas.select(rows)
        owners, ids, masked = [rows], [now.ids], [now.masked]
        if self.seen is None:
            return rows, now.ids, now.masked
        tokens, rank = (values[rows] for values in self._guess(canvas))
        step = (self.seen[0][rows] & ~now.masked).sum(1)
        for _ in range(self.drafts - 1):
            taken = top(torch.where(now.open_cells(), rank, float("-inf")), step)
            now = replace(now)
            now.write(tokens, taken)
            new = taken.any(1)
            owners, ids = [*owners, rows[new]], [*ids, now.ids[new]]
            masked.append(now.masked[new])
        return torch.cat(owners), torch.cat(ids), torch.cat(masked)

    def _guess(self, canvas: Canvas) -> tuple[Tensor, Tensor]:
        """(b, L) tokens and ranks by the last step's logits; rank -inf where there are none."""
        assert self.seen is not None
        _masked, need, logits = self.seen
        logits = logits.float()
        logits[:, self.forbidden] = float("-inf")
        best = most_likely(logits)
        if self.order == "left_to_right":
            rank = -need.nonzero()[:, 1].to(logits)
        else:
            proposal = Proposal(best, log_odds(logits, best), logits)
            named = self.order if self.order in ("margin", "entropy") else "confidence"
            nothing = torch.zeros_like(best)
            rank = ORDERS.get(named)(proposal, Draws(nothing, nothing, nothing))
        return spread(best, need, 0), spread(rank, need, float("-inf"))

    def select(self, rows: Tensor) -> None:
        self.cache.select(rows)
        kept = {new: self.known.get(old, {}) for new, old in enumerate(rows.tolist())}
        self.known = kept
        if self.seen is not None:
            masked, need, logits = self.seen
            mine = torch.zeros_like(need)
            mine[rows] = True
            self.seen = masked[rows], need[rows], logits[mine[need]]


def _names(ids: Tensor) -> list[bytes]:
    return [row.tobytes() for row in ids.cpu().numpy()]
