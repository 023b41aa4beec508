"""The VQ tokenizer of aMUSEd, which Lumina-DiMOO uses: diffusers' `VQModel`."""

from pathlib import Path
from typing import Any

from torch import Tensor

from mmdiff.encoders.codes import CODECS
from mmdiff.errors import CheckpointError, require


class Amused:
    """diffusers works on pixels in [0, 1]."""

    def __init__(self, net: Any) -> None:
        self.net = net.eval().requires_grad_(False)
        self.factor = 2 ** (len(net.config.block_out_channels) - 1)
        self.size = int(net.config.num_vq_embeddings)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (n, 3, H, W) in [-1, 1] -> codes (n, h, w)."""
        pixels = pixels.to(self.net.device, self.net.dtype)
        latents = self.net.encode((pixels + 1) / 2).latents
        codes: Tensor = self.net.quantize(latents)[2][2]
        n, _, h, w = latents.shape
        return codes.view(n, h, w)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (n, h, w) -> pixels (n, 3, H, W)."""
        shape = (*codes.shape, self.net.config.latent_channels)
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
        return Amused(diffusers.VQModel.from_pretrained(path, local_files_only=True))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: holds no VQModel ({error})") from None
