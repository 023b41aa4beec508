"""Speculation: fewer calls for the same cells. Here the exact kind, which changes no token.

What an earlier call said of the canvas as it was going to be needs no call when it is. Nothing else
of the loop changes, so a rule decides what it decides without, from the same logits up to rounding.
`agree` holds the other kind, in which a second model lets more cells be decided at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

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

if TYPE_CHECKING:
    from mmdiff.decoding.agree import Agreed
    from mmdiff.model import MMDiffModel

Scoring = Cache | Guided
Said = tuple[Tensor, Tensor]  # which cells (L,) of a row, and their logits (n, V)


@dataclass(frozen=True)
class Request:
    """What speculation is for: `cache` scores without it, `end_ids` (n,) end a text."""

    model: MMDiffModel
    canvas: Canvas
    settings: Decoding
    cache: Scoring
    forbidden: Tensor
    end_ids: Tensor


class Speculation(Protocol):
    """`scoring` is what the loop scores through; `accept` an accept rule of its own, if any, which
    also counts the calls of a second model (`nfe`) and the seconds in it."""

    scoring: Scoring | Remembered
    accept: Agreed | None

    def __init__(self, request: Request, options: dict[str, Any]) -> None: ...


SPECULATES: Registry[type[Speculation]] = Registry(
    "speculate", modules=("mmdiff.decoding.ahead", "mmdiff.decoding.agree")
)


@SPECULATES.register("none")
class Plain:
    """One canvas of a row per call."""

    accept = None

    def __init__(self, request: Request, options: dict[str, Any]) -> None:
        with_options("speculate=none", options, {})
        self.scoring = request.cache


class Remembered:
    """Scores through `cache`, and only what no earlier call said.

    `calls` (b,) is 1 for rows that needed a call in this step, 0 for the others.
    """

    name: ClassVar[str]
    known: ClassVar[dict[str, float]]
    accept = None
    prompt_only = False

    def __init__(self, request: Request, options: dict[str, Any]) -> None:
        rule = f"speculate={self.name}"
        self.drafts = whole(f"{rule}: drafts", with_options(rule, options, self.known)["drafts"])
        cache = request.cache
        if isinstance(cache, Guided) or not cache.prompt_only:
            raise SettingError(
                f"{rule} scores canvases as they will be; use cache=none or prefix and "
                "no guidance with it"
            )
        self.cache: Cache = cache
        self.forbidden, self.start = request.forbidden, cache.start
        self.total = cache.total
        self.calls: Tensor | int = 1
        self.scoring = self

    def score(self, canvas: Canvas, need: Tensor) -> Tensor:
        said = [self.find(row, canvas, need) for row in range(len(need))]
        missing = [row for row, found in enumerate(said) if found is None]
        if missing:
            self.call(canvas, need, torch.tensor(missing, device=need.device))
        parts = []
        for row, found in enumerate(said):
            cells, logits = found or self.find(row, canvas, need) or (None, None)
            assert cells is not None and logits is not None
            parts.append(logits[need[row][cells]])
        self.calls = torch.zeros_like(canvas.ids[:, 0])
        self.calls[missing] = 1
        made = torch.cat(parts)
        self.note(canvas, need, made)
        return made.clone()  # the loop forbids ids in place

    def find(self, row: int, canvas: Canvas, need: Tensor) -> Said | None:
        """What was said of the needed cells (b, L) of a row, if anything."""
        raise NotImplementedError

    def call(self, canvas: Canvas, need: Tensor, rows: Tensor) -> None:
        """Score the needed cells of these rows (n,), and what comes next."""
        raise NotImplementedError

    def note(self, canvas: Canvas, need: Tensor, logits: Tensor) -> None:
        """What a step was told of its needed cells."""

    def scored(self, canvas: Canvas, cells: Tensor, owner: Tensor) -> tuple[Tensor, ...]:
        """Logits (n, V) of the cells (m, L) of canvases that belong to the rows `owner` (m,)."""
        view = self.cache.view(owner)
        logits = view.score(canvas, cells).split(cells.sum(1).tolist())
        self.total += view.total - self.cache.total
        return logits

    def select(self, rows: Tensor) -> None:
        self.cache.select(rows)


@SPECULATES.register("freedave")
class Drafted(Remembered):
    """FreeDave (arXiv:2510.00294): `drafts` canvases of a row per call at most, side by side.

    A draft takes the cells that the last scored canvas was surest of, as many more per step as the
    last step took.
    """

    name = "freedave"
    known: ClassVar[dict[str, float]] = {"drafts": 4}

    def __init__(self, request: Request, options: dict[str, Any]) -> None:
        super().__init__(request, options)
        self.order = request.settings.order
        # By row still open: what was said of canvases, by their ids.
        self.said: dict[int, dict[bytes, Said]] = {}
        self.seen: tuple[Tensor, Tensor, Tensor] | None = None  # masked, need, logits: last step

    def find(self, row: int, canvas: Canvas, need: Tensor) -> Said | None:
        said = self.said.get(row, {}).get(_name(canvas.ids[row]))
        return said if said is not None and bool((said[0] | ~need[row]).all()) else None

    def note(self, canvas: Canvas, need: Tensor, logits: Tensor) -> None:
        self.seen = canvas.masked, need, logits

    def call(self, canvas: Canvas, need: Tensor, rows: Tensor) -> None:
        """Score these rows and drafts of what becomes of them."""
        owner, ids, masked = self._drafts(canvas, need, rows)
        every = canvas.select(owner)
        wide = replace(every, ids=ids, masked=masked)
        cells = need[owner] | wide.open_cells()
        logits = self.scored(wide, cells, owner)
        self.said.update({row: {} for row in rows.tolist()})
        for row, made, where, scores in zip(owner.tolist(), ids, cells, logits, strict=True):
            self.said[row][_name(made)] = where, scores

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
            if not bool(new.any()):
                break
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
        super().select(rows)
        self.said = {new: self.said.get(old, {}) for new, old in enumerate(rows.tolist())}
        if self.seen is not None:
            masked, need, logits = self.seen
            mine = torch.zeros_like(need)
            mine[rows] = True
            self.seen = masked[rows], need[rows], logits[mine[need]]


def _name(ids: Tensor) -> bytes:
    name: bytes = ids.cpu().numpy().tobytes()
    return name
