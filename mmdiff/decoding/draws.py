"""Where the random numbers of decoding come from.

By default every number is a pure function of (row seed, step, cell), so a batch equals its rows
alone. `compat` names a published project instead: numbers then come from torch's global generator,
in the order, dtype and shape of that project's code, so that its seeded runs can be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.settings import Decoding
from mmdiff.diffusion.schedule import uniform
from mmdiff.registry import Registry


@dataclass
class Draws:
    """The numbers of one step for K open cells: `seed`, `step` and `cell` are (K,).

    `shape` is (rows, columns) of what the model was fed, `place` (K,) each cell's flat index in it.
    """

    seed: Tensor
    step: Tensor
    cell: Tensor
    shape: tuple[int, int] = (0, 0)
    place: Tensor | None = None
    accepts: ClassVar[Mapping[str, Any]] = {}  # accept rules of the project's own, by our names

    @staticmethod
    def prepare(canvas: Canvas, settings: Decoding) -> None:
        """What a project's network makes of a canvas before anything is computed."""

    @staticmethod
    def free(canvas: Canvas, mask_id: int) -> Canvas | None:
        """What guidance compares with; None: the canvas with mask ids for its prompt."""
        return None

    @staticmethod
    def begin(model: Any, canvas: Canvas, cache: Any) -> None:
        """What happens before the first step."""

    @staticmethod
    def need(canvas: Canvas, need: Tensor) -> Tensor:
        """(b, L) bool: the cells to score, of which `need` must be."""
        return need

    @staticmethod
    def end(canvas: Canvas, tokens: Tensor, rows: Tensor) -> None:
        """What happens to `rows` (b,) bool that leave the loop; `tokens` (b, L): last proposals."""

    def tokens(self, logits: Tensor, settings: Decoding) -> tuple[Tensor, Tensor]:
        """Tokens (K,) of logits (K, V), and the logits (K, V) that their confidence is read from:
        always the model's own, neither tempered nor filtered (LLaDA `generate.py`)."""
        if settings.temperature == 0:
            return most_likely(logits), logits
        u = uniform(self.seed, self.step, self.cell).to(logits.device)
        scaled = logits / settings.temperature
        return sample(scaled, u, settings.top_p, settings.top_k), logits

    def within(self, cells: Tensor) -> Draws:
        """The draws of these cells (b, L) alone, all among this step's K."""
        if self.place is None:
            return self
        marked = cells[:, -self.shape[1] :].flatten()[self.place]
        if bool(marked.all()):
            return self
        kept = (x[marked] for x in (self.seed, self.step, self.cell, self.place))
        seed, step, cell, place = kept
        return replace(self, seed=seed, step=step, cell=cell, place=place)

    def uniform(self) -> Tensor:
        """(K,) numbers for random orders."""
        return uniform(self.seed, self.step, self.cell, torch.ones_like(self.cell))

    def choose(self, score: Tensor, counts: Tensor, temperature: float) -> Tensor:
        """(B, L) bool: `counts` (B,) cells per row, the best by `score` (B, L), -inf where closed.

        Above temperature 0 they are drawn without replacement from softmax(score / temperature), by
        adding Gumbel noise (Dream's alg_temp).
        """
        if temperature == 0:
            return top(score, counts)
        is_open = score > float("-inf")
        own = self.within(is_open)
        u = uniform(own.seed, own.step, own.cell, torch.full_like(own.cell, 2))
        noisy = score / temperature
        noisy[is_open] -= (-u.log()).log().to(score)
        return top(noisy, counts)


PUBLISHED = tuple(f"mmdiff.decoding.{n}" for n in ("published", "published_codes", "joint"))
DRAWS: Registry[type[Draws]] = Registry("compat mode", modules=PUBLISHED)


def top(score: Tensor, counts: Tensor) -> Tensor:
    """(B, L) bool: the counts[b] best cells of each row, ties to the lowest cell; never a -inf."""
    order = score.argsort(dim=1, descending=True, stable=True)
    place = torch.empty_like(order).scatter_(
        1, order, torch.arange(score.shape[1], device=score.device).expand_as(order)
    )
    return (place < counts[:, None]) & (score > float("-inf"))


def most_likely(logits: Tensor) -> Tensor:
    """(K,) the first largest of each row (K, V), as argmax, which on a CPU is ten times slower than
    amax: stretches of the row first, then the one that holds it."""
    stretch = 512
    whole = logits.shape[1] // stretch * stretch
    if logits.device.type != "cpu" or whole < 8 * stretch:
        return logits.argmax(1)
    peaks = logits[:, :whole].unflatten(1, (-1, stretch)).amax(2)
    if whole < logits.shape[1]:
        peaks = torch.cat([peaks, logits[:, whole:].amax(1, keepdim=True)], 1)
    first = peaks.argmax(1, keepdim=True) * stretch
    places = (first + torch.arange(stretch)).clamp(max=logits.shape[1] - 1)
    return first[:, 0] + logits.gather(1, places).argmax(1)


def sample(logits: Tensor, u: Tensor, top_p: float = 1.0, top_k: int = 0) -> Tensor:
    """(K,) tokens by inverse transform of u (K,) in softmax of filtered logits (K, V).

    top_k keeps the k most likely; top_p the smallest set whose probability reaches top_p.
    """
    if top_k == 0 and top_p == 1.0:
        return _invert(logits.float().softmax(1), u)
    logits, ids = logits.float().sort(dim=1, descending=True, stable=True)
    if top_k:
        logits[:, top_k:] = float("-inf")
    chance = logits.softmax(1)
    before = chance.cumsum(1) - chance
    chance = chance * (before < top_p)
    return ids.gather(1, _invert(chance, u)[:, None])[:, 0]


def _invert(weight: Tensor, u: Tensor) -> Tensor:
    """First index whose cumulative weight exceeds u times the total; never one of weight 0."""
    total = weight.cumsum(1, dtype=torch.float32)
    whole = total[:, -1]
    # u times the total may round up to the total, which nothing exceeds.
    goal = torch.minimum(u.float() * whole, whole.nextafter(torch.zeros_like(whole)))
    return torch.searchsorted(total, goal[:, None], right=True)[:, 0]
