"""The decoding loop: score open cells, propose tokens, accept some, until no cell is masked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.cache import Cache, cache_maker
from mmdiff.decoding.choose import ACCEPTS, ORDERS
from mmdiff.decoding.draws import DRAWS, Draws
from mmdiff.decoding.guide import Guided
from mmdiff.decoding.propose import propose
from mmdiff.decoding.remask import REMASKS
from mmdiff.decoding.settings import Decoding, cooled, parse_rule, with_seed
from mmdiff.decoding.stop import STOPS, Seen
from mmdiff.errors import CheckpointError

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
    """A canvas without holes. `nfe` (B,): backbone calls each row took part in, without prefill."""

    canvas: Canvas
    nfe: Tensor
    calls: int
    trace: list[Step] = field(default_factory=list)


def set_blocks(canvas: Canvas, block_length: int | None, aligned: bool = False) -> None:
    """Number the answer cells' blocks 1, 2, ... from the left of the answer region, or, `aligned`,
    all cells' from the left of the row (Canvas.align_blocks)."""
    if block_length is None:
        return
    if aligned:
        canvas.align_blocks(block_length)
        return
    answer = canvas.block > 0
    offset = answer.long().cumsum(1) - 1
    canvas.block = torch.where(answer, offset // block_length + 1, 0)


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
    make_cache, make_accept = cache_maker(model, settings), ACCEPTS.get(settings.accept)
    make_draws = DRAWS.get(settings.compat) if settings.compat else Draws
    if model.config.block_size is not None and settings.block_length is None:
        settings = replace(settings, block_length=model.config.block_size)
    order, aligned = ORDERS.get(settings.order), model.config.block_size is not None
    set_blocks(canvas, settings.block_length, aligned)
    make_draws.prepare(canvas, settings)
    seed = torch.tensor(with_seed(settings, canvas.shape[0]), device=canvas.device)
    cache: Cache
    if settings.cfg_scale:
        if free is not None:
            set_blocks(free, settings.block_length, aligned)
        free = free or make_draws.free(canvas, model.config.mask_token_id)
        cache = Guided(make_cache, model, canvas, settings.cfg_scale, free)
    else:
        cache = make_cache(model, canvas)
    make_draws.begin(model, canvas, cache)
    accept_rule = make_accept(settings, canvas)
    remask_name, remask_options = parse_rule(settings.remask)
    remask = REMASKS.get(remask_name)(settings, remask_options)
    stop_name, stop_options = parse_rule(settings.stop)
    stop = STOPS.get(stop_name)(stop_options)
    ends = (() if end_id is None else (end_id,)) + settings.stop_ids
    end_ids = torch.tensor(ends, dtype=torch.long, device=canvas.device)
    forbidden = torch.tensor(settings.forbid, dtype=torch.long, device=canvas.device)
    # Published code may write any id.
    reserved = model.forbidden(settings.codes, anything=settings.compat is not None)
    forbidden = torch.cat([forbidden, reserved])
    late = torch.tensor(settings.late, dtype=torch.long, device=canvas.device)
    filled = Filled(canvas, torch.zeros_like(seed), 0)
    step = torch.zeros_like(seed[:1])
    rows = torch.arange(canvas.shape[0], device=canvas.device)
    live = canvas.select(rows)
    tokens = live.ids

    while True:
        keep = live.masked.any(1)
        if settings.compat and settings.steps:  # and takes no more steps than these
            keep &= step < settings.steps
        if not bool(keep.all()):
            make_draws.end(live, tokens, ~keep)
            _store(filled.canvas, live, rows)
            index = keep.nonzero()[:, 0]
            rows, live, tokens = rows[index], live.select(index), tokens[index]
            cache.select(index)
        if len(rows) == 0:
            return filled
        is_open, wanted = open_cells(live), remask.wants(live, rows)
        need = make_draws.need(live, is_open | wanted)
        logits = cache.score(live, need).float()
        logits[:, forbidden] = float("-inf")
        row, cell = need.nonzero(as_tuple=True)
        offset = cell - live.prompt_length  # the same for any padding
        fed = (len(rows), live.shape[1] - cache.start)
        place = row * fed[1] + cell - cache.start
        draws = make_draws(seed[rows][row], step.expand_as(row), offset, fed, place)
        proposal = propose(logits, draws, cooled(settings, step))
        if bool(proposal.log_odds.isnan().any()):
            raise CheckpointError("the model's logits are not finite; load it with dtype=float32")
        ranked = order(proposal, draws)
        ranked = ranked - LATER * torch.isin(proposal.tokens, late)
        score = _spread(ranked, need, float("-inf")).masked_fill(~is_open, float("-inf"))
        probability = _spread(proposal.probability, need, 0.0)
        accept = accept_rule(score, probability, live, rows, draws)
        tokens = _spread(proposal.tokens, need, 0)
        live.write(tokens, accept)
        remask.revise(live, wanted, tokens, probability)
        if settings.compat:  # published code finds masked cells by their id
            live.masked |= live.writable & (live.ids == model.config.mask_token_id)
        stop(live, end_ids, Seen(rows, need, proposal))
        step += 1
        filled.nfe[rows] += cache.calls
        filled.calls = cache.total
        if settings.trace:
            filled.trace.append(
                Step(rows, live.ids.clone(), live.masked.clone(), accept, probability)
            )


def open_cells(canvas: Canvas) -> Tensor:
    """(B, L) bool: masked cells of the earliest block that still has any, row by row."""
    return canvas.masked & (canvas.block == canvas.open_block())


def _spread(values: Tensor, where: Tensor, empty: float) -> Tensor:
    """(B, L) from the K values of the cells marked in `where`."""
    out = torch.full(where.shape, empty, dtype=values.dtype, device=values.device)
    out[where] = values
    return out


def _store(whole: Canvas, live: Canvas, rows: Tensor) -> None:
    whole.ids[rows], whole.masked[rows] = live.ids, live.masked
