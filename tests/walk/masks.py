"""Attention masks of published projects, each as block, copy and validity of our one rule."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from mmdiff.diffusion.attention import Cells, allowed
from tests.walk.core import Entry
from tests.walk.training import Fixture

Sizes = dict[str, int]


def cells(block: Tensor, copy: Tensor | None = None, valid: Tensor | None = None) -> Cells:
    """One row of columns."""
    copy = torch.zeros_like(block) if copy is None else copy
    valid = torch.ones_like(block).bool() if valid is None else valid
    rows = (x[None] for x in (block, torch.zeros_like(block), copy, valid))
    return Cells(*rows, torch.arange(len(block)))


def joined(clean: Tensor, noisy: Tensor) -> Cells:
    """[clean | noisy] by their blocks."""
    return cells(torch.cat([clean, noisy]), torch.cat([clean * 0, noisy * 0 + 1]))


def halves(noisy: Tensor, clean: Tensor, valid: Tensor | None = None) -> Cells:
    """[noisy | clean] by their blocks, with the same padding."""
    copy = torch.cat([noisy * 0 + 1, clean * 0])
    return cells(torch.cat([noisy, clean]), copy, None if valid is None else valid.repeat(2))


def columns(size: Sizes) -> Tensor:
    return torch.arange(size["L"])


def blocks(size: Sizes) -> Tensor:
    return columns(size) // size["b"]


def single_clean_cells(size: Sizes) -> Cells:
    """The clean half's blocks are single cells, numbered by column as the noisy half's starts."""
    return halves(blocks(size) * size["b"], columns(size))


def gemma(size: Sizes) -> Cells:
    """An encoder's prompt, clean answer and padding, then the canvas."""
    place = torch.arange(size["enc"]) - size["prefix"]
    answer = 1 + torch.arange(size["resp"]) // size["b"]
    clean = torch.where(place < 0, 0, 1 + place // size["b"])
    clean[size["prefix"] + size["resp"] :] = int(answer.max()) + 1
    return joined(clean, answer)


def tracerl(size: Sizes) -> Cells:
    """[prompt | clean answer | noisy answer], blocks counted from the prompt on."""
    clean = torch.arange(size["L0"] + size["L1"]) // size["b"]
    return joined(clean, clean[size["L0"] :])


def real(size: Sizes) -> Tensor:
    return columns(size) < size.get("valid", size["L"])


def padded(size: Sizes) -> Cells:
    return cells(columns(size), valid=real(size))


# Beginning of a mask's name -> layout, cells from the sizes in the name.
MASKS: dict[str, tuple[str, Callable[[Sizes], Cells]]] = {
    "bd3lm": ("block", lambda s: halves(blocks(s), blocks(s))),
    "nvidia_sbd_block_diff": ("block", single_clean_cells),
    "idlm": ("causal_block", lambda s: halves(blocks(s), blocks(s), real(s))),
    "diffusion_gemma": ("block", gemma),
    "lavida_prefix_lm": ("prefix", lambda s: cells((columns(s) >= s["p"]).long())),
    "lavida_default": ("full", lambda s: cells(columns(s))),
    "dimple_full": ("full", padded),
    "dimple_causal": ("causal", padded),
    "tracerl": ("block", tracerl),
    "block_causal_noisy_only": ("block", lambda s: cells(blocks(s))),
}


def sizes_in(name: str) -> Sizes:
    found = re.findall(r"_(L|b|p|valid|prefix|resp|enc)(\d+)(?=_|$)", name)
    found += re.findall(r"_(L0|L1)_(\d+)", name)
    return {key: int(value) for key, value in found}


def attention_masks(entry: Entry) -> None:
    data = Fixture(entry)
    for name in data.data["masks"]:
        size = sizes_in(name)
        rows = data["masks", name]
        expected = torch.tensor([[int(c) for c in row] for row in rows]).bool()
        if name.startswith("llada_v_turns"):
            layout, every = "block", cells(data["sources", name, "conversation_ids"])
        elif any(name.startswith(key) for key in MASKS):
            layout, make = next(MASKS[key] for key in MASKS if name.startswith(key))
            every = make(size)
        else:
            entry.skip(name, "a mask of an unknown kind", f"masks.{name}")
            continue
        # Where the published mask has fewer queries than keys, they are the last ones.
        got = allowed(every, every, layout)[0][-len(expected) :]
        note, read = {}, torch.ones(len(expected)).bool()
        if name.startswith("dimple"):
            note["reason"] = "what padding cells see is left out: nobody reads them"
            read = every.valid[0]
        wrong = int((got[read] != expected[read]).sum())
        entry.note(name, "failed" if wrong else "passed", [f"masks.{name}"], wrong, **note)
    data.finish()
