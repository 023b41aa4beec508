"""Random numbers and habits of MMaDA and Lumina-DiMOO (`compat`): see `mmdiff.decoding.draws`."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import accumulate
from operator import mul
from typing import ClassVar

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.draws import DRAWS, Draws
from mmdiff.decoding.maskgit import MaskGIT
from mmdiff.decoding.published import Gumbel
from mmdiff.decoding.settings import Decoding
from mmdiff.errors import SettingError

DECIDED = math.log(torch.finfo(torch.float32).max)  # the confidence of cells that are not open


@DRAWS.register("mmada")
class MMaDA(Gumbel):
    """MMaDA `mmu_generate`: padding is hidden, but with guidance everybody sees it."""

    @staticmethod
    def prepare(canvas: Canvas, settings: Decoding) -> None:
        if settings.cfg_scale:
            canvas.valid = torch.ones_like(canvas.valid)
            columns = torch.arange(canvas.shape[1], device=canvas.device)
            canvas.position = columns.expand(canvas.shape)


@DRAWS.register("lumina")
class Lumina(Gumbel):
    """Lumina-DiMOO `generate_text_understanding`: guidance hides what follows the answer too."""

    @staticmethod
    def free(canvas: Canvas, mask_id: int) -> Canvas | None:
        ids = torch.where(canvas.writable, canvas.ids, mask_id)
        return replace(canvas, ids=ids, features=None)


class ImageDraws(Draws):
    """What both projects' image samplers share: MaskGIT's choice of cells by noisy log p."""

    def remask(self, log_p: Tensor, cell: Tensor, keep: Tensor, heat: float, size: int) -> Tensor:
        """(K,) bool: which of the K open cells stay masked, rows and numbers `cell` (2, K) in (B,
        size); the others of a row count as sure. Uniforms (B, size) are drawn at any heat."""
        u = torch.rand(len(keep), size, device=log_p.device)
        score = torch.full_like(u, DECIDED)
        score[cell[0], cell[1]] = log_p.clamp(min=math.log(1e-20))
        return lowest(score + heat * gumbel(u), keep)[cell[0], cell[1]]


class OneLeft(MaskGIT):
    """What is left of the heat is multiplied by 1 - k / T in step k, and one cell stays masked."""

    last = 1

    def heats(self, first: float, steps: int) -> list[float]:
        return list(accumulate(super().heats(1.0, steps), mul, initial=first))[1:]


class SameHeat(MaskGIT):
    def heats(self, first: float, steps: int) -> list[float]:
        return [first] * steps


@DRAWS.register("mmada_image")
class MMaDAImage(ImageDraws):
    """MMaDA `t2i_generate`: torch.multinomial over the code probabilities of all cells of the
    picture, (B n, codes), then uniforms (B, n). In the end the one cell still masked takes its last
    draw."""

    accepts: ClassVar = {"maskgit": OneLeft}

    def tokens(self, logits: Tensor, settings: Decoding) -> tuple[Tensor, Tensor]:
        first, count = lane(settings)
        self.size = settings.max_new_tokens
        assert self.place is not None
        row = torch.div(self.place, self.shape[1], rounding_mode="floor")
        index = row * self.size + self.cell
        # Decided cells are drawn as well, and the draws thrown away.
        chance = torch.ones(self.shape[0] * self.size, count, device=logits.device)
        chance[index] = logits[:, first : first + count].softmax(1)
        return torch.multinomial(chance, 1)[index, 0] + first, logits

    def choose(self, score: Tensor, counts: Tensor, temperature: float) -> Tensor:
        is_open = score > float("-inf")
        row = is_open.nonzero()[:, 0]
        keep = is_open.sum(1) - counts
        cell = torch.stack([row, self.cell])
        stay = self.remask(score[is_open], cell, keep, temperature, self.size)
        return is_open.masked_scatter(is_open, ~stay)

    @staticmethod
    def end(canvas: Canvas, tokens: Tensor, rows: Tensor) -> None:
        canvas.write(tokens, canvas.masked & rows[:, None])


@DRAWS.register("lumina_image")
class LuminaImage(ImageDraws):
    """Lumina-DiMOO `generate_image`: Gumbel noise over the codes of masked cells, (1, K, codes),
    none at temperature 0, then over the cells, (1, K), also at 0."""

    accepts: ClassVar = {"maskgit": SameHeat}

    def tokens(self, logits: Tensor, settings: Decoding) -> tuple[Tensor, Tensor]:
        if self.shape[0] != 1:
            raise SettingError("compat=lumina_image takes one row, as the published code does")
        first, count = lane(settings)
        codes = logits[:, first : first + count]
        if settings.temperature > 0:
            codes = codes / settings.temperature + gumbel(torch.rand_like(codes))
        return codes.argmax(1) + first, logits

    def choose(self, score: Tensor, counts: Tensor, temperature: float) -> Tensor:
        is_open = score > float("-inf")
        log_p = score[is_open]
        number = torch.arange(len(log_p), device=score.device)
        keep = is_open.sum(1) - counts
        cell = torch.stack([torch.zeros_like(number), number])
        stay = self.remask(log_p, cell, keep, temperature, len(log_p))
        return is_open.masked_scatter(is_open, ~stay)


def lane(settings: Decoding) -> tuple[int, int]:
    if settings.codes is None:
        raise SettingError(f"compat={settings.compat} writes image codes; say codes=[first, count]")
    return settings.codes


def gumbel(u: Tensor) -> Tensor:
    """Gumbel noise of uniform numbers."""
    return -(-u.clamp(min=1e-20).log()).clamp(min=1e-20).log()


def lowest(score: Tensor, count: Tensor) -> Tensor:
    """(B, n) bool: the count[b] cells of lowest score (B, n); fewer where scores tie at the border
    (MaskGIT's `mask_by_random_topk`)."""
    border = score.sort(dim=1).values.gather(1, count[:, None])
    return score < border
