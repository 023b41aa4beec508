"""Random numbers as published projects draw them (`compat`): see `mmdiff.decoding.draws`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.cache import PrefixCache
from mmdiff.decoding.draws import DRAWS, Draws
from mmdiff.decoding.saber import PublishedSurer
from mmdiff.decoding.settings import Decoding
from mmdiff.diffusion.schedule import origin_chance
from mmdiff.errors import SettingError


@DRAWS.register("fast_dllm")
class Gumbel(Draws):
    """LLaDA's noise: float64 uniforms over all that was fed, (B, S, V); the token is
    argmax exp(l) / (-ln u)^temperature. Random order: float32 (B, S)."""

    def tokens(self, logits: Tensor, settings: Decoding) -> tuple[Tensor, Tensor]:
        if settings.temperature == 0:
            return logits.argmax(1), logits
        rows, columns = self.shape
        u = torch.rand(rows * columns, logits.shape[1], dtype=torch.float64, device=logits.device)
        noise = (-torch.log(u[self.place])) ** settings.temperature
        return (logits.double().exp() / noise).argmax(1), logits

    def uniform(self) -> Tensor:
        return torch.rand(self.shape, device=self.cell.device).flatten()[self.place]


@DRAWS.register("llada")
class LLaDA(Gumbel):
    """LLaDA, LaViDa and LLaDA-V `generate`: any padding mask makes the network causal."""

    @staticmethod
    def prepare(canvas: Canvas, settings: Decoding) -> None:
        if not bool(canvas.valid.all()):
            canvas.layout = "causal"


@DRAWS.register("saber")
class Saber(Gumbel):
    """Saber's decoding: cells that are not open may be accepted too (PublishedSurer)."""

    accepts: ClassVar[Mapping[str, Any]] = {"saber": PublishedSurer}

    @staticmethod
    def need(canvas: Canvas, need: Tensor) -> Tensor:
        return canvas.valid


@DRAWS.register("dream")
class Dream(Draws):
    """Dream `diffusion_generate`: torch's Categorical over the filtered, tempered distribution,
    which the confidence is read from too; alg_temp by torch.multinomial."""

    drawn: Tensor | None = None  # alg=origin draws which cells before it draws their tokens

    def tokens(self, logits: Tensor, settings: Decoding) -> tuple[Tensor, Tensor]:
        decided = torch.ones_like(self.cell, dtype=torch.bool)
        if settings.accept == "origin":
            self.drawn = self.uniform()
            steps = settings.steps or settings.max_new_tokens
            chance = origin_chance(self.step, steps, settings.eps)
            decided = self.drawn < chance
        if settings.temperature > 0:
            logits = logits / settings.temperature
        logits = _nucleus(logits, settings.top_p, settings.top_k)
        tokens = logits.argmax(1)
        if settings.temperature > 0 and bool(decided.any()):
            chances = logits[decided].softmax(1)
            tokens[decided] = torch.distributions.Categorical(probs=chances).sample()
        return tokens, logits

    def uniform(self) -> Tensor:
        if self.drawn is not None:
            return self.drawn
        return torch.rand(len(self.cell), device=self.cell.device)

    def choose(self, score: Tensor, counts: Tensor, temperature: float) -> Tensor:
        most = int(counts.max())
        if temperature == 0:  # topk settles ties in its own way: filtered entropies are often 0
            drawn = score.topk(most).indices
        elif most:
            drawn = torch.multinomial((score / temperature).softmax(1), most)
        else:
            drawn = torch.zeros(len(score), 0, dtype=torch.long, device=score.device)
        fewer = torch.arange(most, device=score.device) < counts[:, None]
        accept = torch.zeros_like(score, dtype=torch.bool).scatter_(1, drawn, fewer)
        return accept & (score > float("-inf"))


@DRAWS.register("lavida_dream")
class LaViDaDream(Dream):
    """LaViDa's copy of Dream: with the prefix cache the prompt's own forward decides the first
    answer cell, before any step."""

    @staticmethod
    def begin(model: Any, canvas: Canvas, cache: Any) -> None:
        if isinstance(cache, PrefixCache):
            first = torch.zeros_like(canvas.masked)
            first[:, cache.start] = canvas.masked[:, cache.start]
            best = model.head(cache.last[:, 0]).argmax(1)
            canvas.write(best[:, None], first)

    def choose(self, score: Tensor, counts: Tensor, temperature: float) -> Tensor:
        """As Dream, but among the open cells alone, which settles ties otherwise; one row."""
        if len(score) != 1:
            raise SettingError("compat=lavida_dream takes one row, as the published code does")
        is_open = score > float("-inf")
        accept = torch.zeros_like(is_open)
        accept[is_open] = super().choose(score[is_open][None], counts, temperature)[0]
        return accept


@DRAWS.register("sdar")
class SDAR(Draws):
    """SDAR-VL `block_diffusion_generate`: all cells of the open block are scored and drawn by
    torch.multinomial, confidence is that of the tempered, unfiltered distribution. Where a step has
    more cells by schedule than are masked, topk takes given or decided ones of the block too, which
    are written over."""

    @staticmethod
    def begin(model: Any, canvas: Canvas, cache: Any) -> None:
        if canvas.shape[0] != 1 or cache.start:
            raise SettingError("compat=sdar takes one row and cache=block, as the published code")

    @staticmethod
    def need(canvas: Canvas, need: Tensor) -> Tensor:
        return canvas.valid & (canvas.block == canvas.open_block())

    def tokens(self, logits: Tensor, settings: Decoding) -> tuple[Tensor, Tensor]:
        if settings.temperature == 0:
            return logits.argmax(1), logits
        logits = logits / settings.temperature
        kept = _nucleus(_nucleus(logits, 1.0, settings.top_k), settings.top_p, 0)
        return torch.multinomial(kept.softmax(1), 1)[:, 0], logits

    def choose(self, score: Tensor, counts: Tensor, temperature: float) -> Tensor:
        assert self.place is not None  # one row: the columns of the block
        best = score[0, self.place].topk(int(counts[0])).indices
        accept = torch.zeros_like(score, dtype=torch.bool)
        accept[0, self.place[best]] = True
        return accept


def _nucleus(logits: Tensor, top_p: float, top_k: int) -> Tensor:
    """Logits (K, V) with -inf outside the nucleus: the first tokens up to and including the one
    that crosses top_p, then the top_k."""
    if top_p < 1:
        ordered, ids = logits.sort(descending=True)
        drop = ordered.softmax(-1).cumsum(-1) > top_p
        drop[:, 1:] = drop[:, :-1].clone()
        drop[:, 0] = False
        logits = logits.masked_fill(drop.scatter(1, ids, drop), float("-inf"))
    if top_k:
        least = logits.topk(min(top_k, logits.shape[1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    return logits
