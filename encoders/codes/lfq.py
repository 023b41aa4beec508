"""Look-up-free quantisation (MAGVIT-v2, arXiv:2310.05737 §3.1): a code is its channels' signs.

Bit c of a code is 1 where channel c is above 0; channel 0 is the most significant bit.
"""

import torch
from torch import Tensor


def to_codes(z: Tensor) -> Tensor:
    """Latents (n, bits, h, w) -> codes (n, h, w) in [0, 2**bits)."""
    place = 2 ** torch.arange(z.shape[1] - 1, -1, -1, device=z.device)
    return ((z > 0).long() * place[:, None, None]).sum(1)


def to_latents(codes: Tensor, bits: int) -> Tensor:
    """Codes (n, h, w) -> latents (n, bits, h, w) of -1 and 1, float32."""
    place = torch.arange(bits - 1, -1, -1, device=codes.device)
    return ((codes[:, None] >> place[:, None, None]) & 1).float() * 2 - 1
