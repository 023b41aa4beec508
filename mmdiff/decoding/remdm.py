"""ReMDM: decided cells are masked again by chance, and masked ones decided the more often for it.

Between the times t > s of a step, with alpha = 1 - time, a decided cell is masked again with chance
sigma and a masked one decided with chance (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), so that
at every time as many are masked as without (arXiv:2503.00307). sigma is at most
sigma_max = min(1, (1 - alpha_s) / alpha_t); the rules differ in how much of it they take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.draws import Draws
from mmdiff.decoding.remask import REMASKS, reopen
from mmdiff.decoding.settings import Decoding, with_options, with_seed
from mmdiff.diffusion.schedule import uniform
from mmdiff.errors import SettingError

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel

DECIDE, MASK = 1, 3  # keys of the noise


class ReMDM:
    """Takes the place of `accept=origin`, on the same grid of times from 1 to eps; after the last
    step nothing is masked. sigma is 0 while t is above `on`.

    Each row has a clock of its own: steps in which it has no masked cell need no call of the model,
    and pass until a cell is masked again or the time is over.
    """

    name: ClassVar[str]
    known: ClassVar[dict[str, float]] = {"eta": 0.02, "on": 1.0}
    needs: ClassVar[dict[str, str]] = {"accept": "origin"}

    def __init__(
        self, settings: Decoding, options: dict[str, Any], model: MMDiffModel, canvas: Canvas
    ) -> None:
        rule = f"remask={self.name}"
        self.options = with_options(rule, options, self.known)
        for name, value in self.options.items():
            if not 0 <= value <= 1:
                raise SettingError(f"{rule}: {name}={value} must lie in [0, 1]")
        if settings.accept != "origin" or settings.blocks > 1:
            raise SettingError(f"{rule} draws what is decided; use accept=origin and one block")
        self.steps = settings.steps or settings.max_new_tokens
        time = torch.linspace(1, settings.eps, self.steps + 1, dtype=torch.float64)
        time[-1] = 0
        self.time = time.to(canvas.device)
        self.mask_id = model.config.mask_token_id
        self.seed = torch.tensor(with_seed(settings, canvas.shape[0]), device=canvas.device)
        self.clock = torch.zeros_like(self.seed)
        self.kept = torch.ones(canvas.shape, device=canvas.device)  # p when last decided

    def sigma(self, most: Tensor, decided: Tensor, kept: Tensor) -> Tensor:
        """(b, L) or (b, 1) chances from sigma_max (b, 1), decided cells and p when they were."""
        raise NotImplementedError

    def chances(self, rows: Tensor, decided: Tensor) -> tuple[Tensor, Tensor]:
        """(b, L) chances to be masked again, of decided cells, and to be decided, of the others."""
        clock = self.clock[rows, None].clamp(max=self.steps - 1)  # where time is over, no matter
        t, s = self.time[clock], self.time[clock + 1]
        # At t = 1 infinite: all may go, but nothing is decided; in the last step none may go.
        most = torch.where(s > 0, s / (1 - t), 0.0).clamp(max=1)
        sigma = self.sigma(most, decided, self.kept[rows]) * (t <= self.options["on"])
        decide = (t - s + sigma * (1 - t)) / t
        return sigma.expand(decided.shape), decide.expand(decided.shape)

    def noise(self, canvas: Canvas, rows: Tensor, key: int) -> Tensor:
        cell = torch.arange(canvas.shape[1], device=canvas.device) - canvas.prompt_length
        clock = self.clock[rows, None]
        return uniform(self.seed[rows, None], clock, cell[None], torch.full_like(clock, key))

    def accept(
        self, score: Tensor, probability: Tensor, canvas: Canvas, rows: Tensor, draws: Draws
    ) -> Tensor:
        decided = canvas.writable & ~canvas.masked
        _, decide = self.chances(rows, decided)
        taken = (score > float("-inf")) & (self.noise(canvas, rows, DECIDE) < decide)
        self.kept[rows] = torch.where(taken, probability.to(self.kept), self.kept[rows])
        return taken

    def wants(self, canvas: Canvas, rows: Tensor) -> Tensor:
        self.rows, self.before = rows, canvas.masked
        return torch.zeros_like(canvas.masked)

    def revise(self, canvas: Canvas, wanted: Tensor, tokens: Tensor, probability: Tensor) -> None:
        able = canvas.writable & ~self.before
        going = torch.ones_like(self.rows, dtype=torch.bool)
        while bool(going.any()):
            again, _ = self.chances(self.rows, able)
            masked = able & (self.noise(canvas, self.rows, MASK) < again) & going[:, None]
            reopen(canvas, masked, canvas.block.amax(1, keepdim=True), self.mask_id)
            self.clock[self.rows] += going.long()
            able = canvas.writable & ~canvas.masked
            over = self.clock[self.rows] >= self.steps
            going = going & ~canvas.masked.any(1) & ~over


@REMASKS.register("remdm_cap")
class Cap(ReMDM):
    """sigma = min(eta, sigma_max)."""

    name = "remdm_cap"

    def sigma(self, most: Tensor, decided: Tensor, kept: Tensor) -> Tensor:
        return most.clamp(max=self.options["eta"])


@REMASKS.register("remdm_rescale")
class Rescale(ReMDM):
    """sigma = eta sigma_max."""

    name = "remdm_rescale"

    def sigma(self, most: Tensor, decided: Tensor, kept: Tensor) -> Tensor:
        return most * self.options["eta"]


@REMASKS.register("remdm_conf")
class Confidence(ReMDM):
    """sigma = softmax(-p) sigma_max over the decided cells, p a cell's probability when it was
    decided; 0 for masked ones."""

    name = "remdm_conf"
    known: ClassVar[dict[str, float]] = {"on": 1.0}

    def sigma(self, most: Tensor, decided: Tensor, kept: Tensor) -> Tensor:
        share = (-kept).double().masked_fill(~decided, float("-inf")).softmax(1)
        return share.nan_to_num(0) * most
