"""The VQ tokenizer of aMUSEd, which Lumina-DiMOO uses: diffusers' `VQModel`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdiff.encoders.codes import CODECS
from mmdiff.errors import CheckpointError, require


class Amused:
    """diffusers works on pixels in [0, 1]."""

    def __init__(self, net: Any) -> None:
        self.net = net.eval().requires_grad_(False)
        self.factor = 2 ** (len(net.config.block_out_channels) - 1)
        self.size = int(net.config.num_vq_embeddings)

    def to(self, device: Any) -> Amused:
        self.net.to(device)
        return self

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (n, 3, H, W) in [-1, 1] -> codes (n, h, w)."""
        pixels = pixels.to(self.net.device, self.net.dtype)
        latents = self.net.encode((pixels + 1) / 2).latents
        codes: Tensor = self.net.quantize(latents)[2][2]
        n, _, h, w = latents.shape
        return codes.view(n, h, w)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (n, h, w) -> pixels (n, 3, H, W)."""
        config = self.net.config
        shape = (*codes.shape, config.vq_embed_dim or config.latent_channels)
        codes = codes.to(self.net.device)
        pixels: Tensor = self.net.decode(codes, force_not_quantize=True, shape=shape).sample
        return pixels * 2 - 1


@CODECS.register("amused")
def load(path: Path, config: dict[str, Any] | None = None) -> Amused:
    """The folder that holds the VQModel's own config.json (Lumina-DiMOO's `vqvae`)."""
    diffusers = require("diffusers", "codes", "the aMUSEd picture tokenizer")
    if config:
        raise CheckpointError(f"{path}: a VQModel has its sizes in its own config.json alone")
    try:
        net, report = diffusers.VQModel.from_pretrained(
            path, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # whatever odd files make diffusers raise
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(f"{path}: holds no VQModel ({reason})") from None
    for kind, words in (("missing", "lacks the weight"), ("unexpected", "holds an unknown weight")):
        if keys := report[f"{kind}_keys"]:
            raise CheckpointError(f"{path}: the VQModel {words}: {min(keys)}")
    if not net.config.lookup_from_codebook:
        raise CheckpointError(
            f"{path}/config.json: lookup_from_codebook is not true; this VQModel decodes no codes"
        )
    return Amused(net)
