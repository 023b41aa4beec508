"""Published decoding loops, restated plainly: what the speed of ours is measured against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def noisy(logits: Tensor, temperature: float) -> Tensor:
    """exp(l) / (-ln u)^T with uniforms u over everything, in float64; the logits at T = 0."""
    if temperature == 0:
        return logits
    u = torch.rand_like(logits, dtype=torch.float64)
    return logits.double().exp() / (-u.log()) ** temperature


def llada(
    logits_of: Callable[[Tensor], Tensor],
    prompt: Tensor,
    cells: int,
    steps: int,
    block_length: int,
    temperature: float,
    mask_id: int,
) -> Tensor:
    """LLaDA (ML-GSAI/LLaDA, `generate.py` of 2026-06, low_confidence, no guidance): every step
    takes logits of the whole row, softmax in their dtype, and keeps the surest cells of the block.

    `logits_of`: ids (B, L) -> (B, L, V); `prompt` (B, P) -> ids (B, P + cells).
    """
    rows = len(prompt)
    ids = torch.cat([prompt, torch.full((rows, cells), mask_id)], dim=1)
    blocks = cells // block_length
    for end in range(prompt.shape[1] + block_length, ids.shape[1] + 1, block_length):
        masks = (ids[:, end - block_length : end] == mask_id).sum(1).tolist()
        each = steps // blocks
        for step in range(each):
            is_open = ids == mask_id
            logits = logits_of(ids)
            tokens = noisy(logits, temperature).argmax(-1)
            sure = logits.softmax(-1).gather(-1, tokens[..., None])[..., 0]
            sure[:, end:] = float("-inf")
            sure[~is_open] = float("-inf")
            for row, left in enumerate(masks):
                count = left // each + (step < left % each)
                best = sure[row].topk(count).indices
                ids[row, best] = tokens[row, best]
    return ids
