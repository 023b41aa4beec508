"""Block diffusion without a checkpoint: SDAR's loop over a table, DiffusionVL's training mask,
DiffusionGemma's rules."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.decoding.choose import ORDERS, within_bound
from mmdiff.decoding.draws import Draws
from mmdiff.decoding.loop import Filled, decode
from mmdiff.decoding.propose import Proposal
from mmdiff.decoding.settings import linear_temperature, make_decoding
from mmdiff.decoding.stop import Repeats
from mmdiff.diffusion.attention import Cells, allowed
from mmdiff.diffusion.losses import cell_weight
from mmdiff.diffusion.schedule import mask_probability, mask_slope
from mmdiff.model import MMDiffModel
from mmdiff.processing import collate, prompt_row
from tests.walk.core import Entry, Json

STRATEGIES = {
    "low_confidence_static": {"accept": "schedule", "order": "confidence"},
    "low_confidence_dynamic": {"accept": "dynamic", "order": "confidence"},
    "sequential": {"accept": "schedule", "order": "left_to_right"},
}


class TableModel:
    """What the decoding loop asks of a model, answered by a table: the logits of a cell are
    T[its id] + P[its position]."""

    def __init__(self, entry: Entry) -> None:
        self.tokens, self.places = entry.inputs["T"], entry.inputs["P"]
        self.rows = self.tokens.shape[1]
        self.config = SimpleNamespace(
            attention_layout="block",
            block_size=1,  # blocks from the row's first cell on; decoding sets their length
            shift=False,
            mask_token_id=entry.ids["mask"],
        )

    def get_input_embeddings(self) -> Any:
        return lambda ids: self.tokens[ids]

    def embed(self, canvas: Canvas) -> Tensor:
        return self.tokens[canvas.ids]

    def hidden(
        self,
        canvas: Canvas,
        embeds: Tensor,
        start: int = 0,
        stop: int | None = None,
        cache: Any = None,
        columns: Tensor | None = None,
    ) -> Tensor:
        position = canvas.position[:, start:stop]
        if columns is not None:
            position = canvas.position.gather(1, columns)
        return embeds + self.places[position]

    def head(self, hidden: Tensor) -> Tensor:
        return hidden

    def forbidden(self, codes: Any, anything: bool) -> Tensor:
        return torch.zeros(0, dtype=torch.long)

    pick, scoring = MMDiffModel.pick, MMDiffModel.scoring


def blockdiff(entry: Entry) -> None:
    entry.cases(sdar)
    entry.cases(diffusion_gemma, "extra_cases")
    training_parts(entry)


def sdar(entry: Entry, case: Json) -> None:
    """One run of `block_diffusion_generate`: ids, and the number of forward calls."""
    kwargs, prompt = case["kwargs"], entry.inputs[case["prompt"]][0].tolist()
    length = kwargs["block_length"]
    whole = -(-(len(prompt) + kwargs["gen_length"]) // length) * length
    cells = whole - len(prompt)
    settings = make_decoding(
        {
            "max_new_tokens": cells,
            "block_length": length,
            "steps": kwargs["denoising_steps"] * -(-cells // length),
            "schedule": "rate",
            "threshold": kwargs["threshold"],
            "temperature": kwargs.get("temperature", 1.0),
            "top_k": kwargs.get("top_k", 0),
            "top_p": kwargs.get("top_p", 1.0),
            "stop": "block",
            "stop_ids": case.get("stop_token_ids") or [],
            "compat": "sdar",
        },
        STRATEGIES[kwargs["strategy"]],
    )
    row = prompt_row(prompt, [entry.ids["mask"]] * cells, [True] * cells)
    if case.get("seed") is not None:
        torch.manual_seed(case["seed"])
    filled = decode(TableModel(entry), collate([row], pad_id=0), settings, None)
    entry.compare(case["output"], filled.canvas.ids)
    if case.get("forward_calls") is not None:
        calls = published_calls(filled, len(prompt), length, entry.ids["mask"])
        status = "passed" if calls == case["forward_calls"] else "failed"
        entry.note(f"{case['output']} calls", status, [], abs(calls - case["forward_calls"]))


def published_calls(filled: Filled, prompt: int, length: int, mask: int) -> int:
    """Calls of the published loop: one for the prompt's whole blocks, one per filled block to store
    it. Ours feeds a finished block together with the first step of the next."""
    given = prompt // length
    full = int((filled.canvas.ids.view(-1, length) != mask).all(1).sum())
    return int(given > 0) + filled.calls + full - given


def diffusion_gemma(entry: Entry, case: Json) -> None:
    logits = entry.inputs["dg_logits"]
    rows, cells, size = logits.shape
    every = torch.ones(rows, cells, dtype=torch.bool)
    for bound in case["entropy_bounds"]:
        accept = within_bound(entropies(logits), every, bound)
        entry.compare(f"dg_mask_eb{bound}", accept)
        kept = torch.where(accept, entry.inputs["dg_denoiser"], entry.inputs["dg_current"])
        entry.compare(f"dg_accept_eb{bound}", kept)
    remaining, steps = case["temperature_steps_remaining"], case["max_denoising_steps"]
    ends = case["temperature_max"], case["temperature_min"]
    name = "dg_temperature_steps_" + "_".join(map(str, remaining))
    entry.compare(name, [linear_temperature(n, steps, *ends) for n in remaining])
    best = logits.argmax(2)
    mean = entropies(logits * case["stop_logits_scale"]).mean(1)
    for stability in case["stop_stability"]:
        repeats, stored = Repeats(), entry.outputs[f"dg_stop_stab{stability}"]
        stops = []
        for call in range(len(stored)):
            seen = (best + 1) % size if call == 1 else best
            stable = repeats(seen, torch.arange(rows)) >= stability
            stops.append(stable & (mean < case["stop_confidence_threshold"]))
        entry.compare(f"dg_stop_stab{stability}", torch.stack(stops))


def entropies(logits: Tensor) -> Tensor:
    """(B, L) of logits (B, L, V)."""
    flat = logits.flatten(0, 1)
    none = torch.zeros(len(flat), dtype=torch.long)
    proposal = Proposal(none, none.float(), flat)
    return -ORDERS.get("entropy")(proposal, Draws(none, none, none)).view(logits.shape[:2])


def training_parts(entry: Entry) -> None:
    """BD3-LM's mask, noisy cells first, and the loss weight and mask probability at times t."""
    for name in entry.outputs:
        if sizes := re.fullmatch(r"bd3_mask_n(\d+)_b(\d+)", name):
            cells, length = map(int, sizes.groups())
            number = torch.arange(cells) // length
            both, zeros = number.repeat(2)[None], torch.zeros(1, 2 * cells, dtype=torch.long)
            copy = (torch.arange(2 * cells) < cells).long()[None]
            every = Cells(both, zeros, copy, zeros == 0, torch.arange(2 * cells))
            entry.compare(name, allowed(every, every, "block")[0])
    time = entry.inputs["bd3_t"]
    chance = mask_probability(time, "linear", eps=0.0)
    weight = cell_weight(chance, torch.zeros_like(time), "elbo", mask_slope(time, "linear", eps=0))
    entry.compare("bd3_move_chance", chance)
    entry.compare("bd3_loss_scale", -weight)  # published as a factor of the log-likelihood
