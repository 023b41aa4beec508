"""The decoding loop: score open cells, propose tokens, accept some, until no cell is masked."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmdiff.canvas import Canvas, set_blocks
from mmdiff.decoding.cache import Cache, cache_maker
from mmdiff.decoding.choose import ACCEPTS, ORDERS, Accept, Order
from mmdiff.decoding.draws import DRAWS, Draws
from mmdiff.decoding.guide import Guided
from mmdiff.decoding.length import LENGTHS, Length, widen
from mmdiff.decoding.propose import Proposal, propose, spread
from mmdiff.decoding.remask import REMASKS, Remask
from mmdiff.decoding.rope import scaled
from mmdiff.decoding.settings import Decoding, cooled, parse_rule, with_options, with_seed
from mmdiff.decoding.speculate import SPECULATES, Drafted
from mmdiff.decoding.stop import STOPS, Seen, Stop
from mmdiff.errors import CheckpointError, SettingError

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel


LATER = 1e30  # below every score of an order


@dataclass
class Step:
    """One denoising step as it stood after writing; `rows` numbers the rows still open."""

    rows: Tensor
    ids: Tensor
    masked: Tensor
    accepted: Tensor
    probability: Tensor


@dataclass
class Filled:
    """A canvas without holes. `nfe` (B,): backbone calls each row took part in, without prefill.
    `seconds` of wall time; `inside` the model and passes over the vocabulary."""

    canvas: Canvas
    nfe: Tensor
    calls: int
    trace: list[Step] = field(default_factory=list)
    seconds: float = 0.0
    inside: float = 0.0


@dataclass
class Rules:
    """What the settings name, made for one canvas."""

    cache: Cache | Guided | Drafted
    order: Order
    accept: Accept
    remask: Remask
    stop: Stop
    length: Length
    draws: type[Draws]
    end_ids: Tensor  # end a text
    forbidden: Tensor  # no cell may take
    late: Tensor  # accepted where nothing else is left
    see: Callable[[Seen], None] | None  # what the accept rule makes of the model's words
    foreseen: bool  # cells are chosen before the model is asked

    @classmethod
    def of(
        cls,
        model: MMDiffModel,
        canvas: Canvas,
        settings: Decoding,
        end_id: int | None,
        free: Canvas | None,
    ) -> Rules:
        draws = DRAWS.get(settings.compat) if settings.compat else Draws
        set_blocks(canvas, settings.block_length, aligned=model.config.block_size is not None)
        draws.prepare(canvas, settings)
        make_cache = cache_maker(model, settings)
        remask_name, remask_options = parse_rule(settings.remask)
        stop, stop_options = parse_rule(settings.stop)
        length, length_options = parse_rule(settings.length)
        speculate, speculate_options = parse_rule(settings.speculate)
        order = ORDERS.get(settings.order)
        accept, accept_options = parse_rule(settings.accept)
        make_accept = draws.accepts.get(accept) or ACCEPTS.get(accept)
        known = getattr(make_accept, "options", {})
        accept_options = with_options(f"accept={accept}", accept_options, known)
        cache: Cache | Guided
        if settings.cfg_scale:
            free = free or draws.free(canvas, model.config.mask_token_id)
            cache = Guided(make_cache, model, canvas, settings.cfg_scale, free)
        else:
            cache = make_cache(model, canvas)
        make_length = LENGTHS.get(length)
        if make_length.inserts and not (cache.prompt_only and speculate == "none"):
            raise SettingError(
                f"length={length} inserts cells; use cache=none or prefix with it, and neither "
                "guidance nor speculation"
            )
        draws.begin(model, canvas, cache)
        # Published code may write any id.
        reserved = model.forbidden(settings.codes, anything=settings.compat is not None)
        ids = partial(torch.tensor, dtype=torch.long, device=canvas.device)
        forbidden = torch.cat([ids(settings.forbid), reserved])
        remask = REMASKS.get(remask_name)(settings, remask_options, model, canvas)
        chosen: Accept = getattr(remask, "accept", None) or make_accept(
            settings, canvas, **accept_options
        )
        return cls(
            cache=SPECULATES.get(speculate)(cache, settings, speculate_options, forbidden),
            order=order,
            accept=chosen,
            remask=remask,
            stop=STOPS.get(stop)(stop_options, settings),
            length=make_length(settings, length_options, model, canvas),
            draws=draws,
            end_ids=ids((() if end_id is None else (end_id,)) + settings.stop_ids),
            forbidden=forbidden,
            late=ids(settings.late),
            see=getattr(chosen, "see", None),
            foreseen=cache.foreseen,
        )

    def foresee(self, live: Canvas, is_open: Tensor, rows: Tensor, draws: Draws) -> Tensor:
        """(b, L) bool: the open cells (b, L) to decide now, by an order that asks no model."""
        nothing = torch.zeros_like(draws.cell, dtype=torch.float32)
        order = self.order(Proposal(draws.cell, nothing, nothing[:, None]), draws)
        score = spread(order, is_open, float("-inf"))
        return self.accept(score, score, live, rows, draws)


@torch.inference_mode()
def decode(
    model: MMDiffModel,
    canvas: Canvas,
    settings: Decoding,
    end_id: int | None,
    free: Canvas | None = None,
) -> Filled:
    """Fill every masked cell. Rows are independent: a batch equals its rows decoded one by one.
    `free` is what guidance compares with (Guided)."""
    with scaled(model, settings.rope_scale):
        return _fill(model, canvas, settings, end_id, free)


def _fill(
    model: MMDiffModel,
    canvas: Canvas,
    settings: Decoding,
    end_id: int | None,
    free: Canvas | None,
) -> Filled:
    began = time.perf_counter()
    if model.config.block_size is not None and settings.block_length is None:
        settings = replace(settings, block_length=model.config.block_size)
    seed = torch.tensor(with_seed(settings, canvas.shape[0]), device=canvas.device)
    rules = Rules.of(model, canvas, settings, end_id, free)
    cache = rules.cache
    filled = Filled(canvas, torch.zeros_like(seed), 0, inside=time.perf_counter() - began)
    step = torch.zeros_like(seed[:1])
    rows = torch.arange(canvas.shape[0], device=canvas.device)
    live = canvas.select(rows)
    tokens = live.ids

    while True:
        keep = live.masked.any(1)
        if settings.compat and settings.steps:  # and takes no more steps than these
            keep &= step < settings.steps
        if not bool(keep.all()):
            rules.draws.end(live, tokens, ~keep)
            _store(filled.canvas, live, rows, rules.end_ids)
            index = keep.nonzero()[:, 0]
            rows, live, tokens = rows[index], live.select(index), tokens[index]
            cache.select(index)
        if len(rows) == 0:
            filled.calls, filled.seconds = cache.total, time.perf_counter() - began
            return filled
        is_open, wanted = live.open_cells(), rules.remask.wants(live, rows)
        accept: Tensor | None = None
        if rules.foreseen:
            draws = _draws(rules, live, is_open, seed[rows], step)
            accept = is_open = rules.foresee(live, is_open, rows, draws)
        need = rules.draws.need(live, is_open | wanted | rules.stop.wants(live))
        need = rules.length.need(live, need)
        asked = time.perf_counter()
        logits = cache.score(live, need).float()
        logits[:, rules.forbidden] = float("-inf")
        draws = _draws(rules, live, need, seed[rows], step)
        proposal = propose(logits, draws, cooled(settings, step))
        order = rules.order(proposal, draws)
        if bool(proposal.log_odds.isnan().any()):  # which waits for the device, too
            raise CheckpointError("the model's logits are not finite; load it with dtype=float32")
        filled.inside += time.perf_counter() - asked
        seen = Seen(rows, need, proposal)
        if rules.see is not None:
            rules.see(seen)
        is_open = rules.length.bound(live, is_open, seen)
        ranked = order - LATER * torch.isin(proposal.tokens, rules.late)
        score = spread(ranked, need, float("-inf")).masked_fill(~is_open, float("-inf"))
        probability = spread(proposal.probability, need, 0.0)
        if accept is None:
            accept = rules.accept(score, probability, live, rows, draws)
        tokens = spread(proposal.tokens, need, 0)
        live.write(tokens, accept)
        rules.remask.revise(live, wanted, tokens, probability)
        if settings.compat:  # published code finds masked cells by their id
            live.masked |= live.writable & (live.ids == model.config.mask_token_id)
        rules.stop(live, rules.end_ids, seen)
        step += 1
        filled.nfe[rows] += cache.calls
        if settings.trace:
            filled.trace.append(
                Step(rows, live.ids.clone(), live.masked.clone(), accept, probability)
            )
        live = rules.length.grow(live, rules.end_ids, seen)


def _draws(rules: Rules, live: Canvas, need: Tensor, seed: Tensor, step: Tensor) -> Draws:
    """The random numbers of one step for the needed cells; `seed` (b,) of the rows still open."""
    row, cell = need.nonzero(as_tuple=True)
    offset = cell - live.prompt_length  # the same for any padding
    columns = live.shape[1] - rules.cache.start
    place = row * columns + cell - rules.cache.start
    shape = (len(live.ids), columns)
    return rules.draws(seed[row], step.expand_as(row), offset, shape, place)


def _store(whole: Canvas, live: Canvas, rows: Tensor, end_ids: Tensor) -> None:
    if live.shape[1] > whole.shape[1]:
        widen(whole, live.shape[1], end_ids)
    for name in ("ids", "masked", "writable", "valid", "block"):
        setattr(whole, name, getattr(whole, name).index_copy(0, rows, getattr(live, name)))
