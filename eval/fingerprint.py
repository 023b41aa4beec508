"""What a model is: a digest of everything in it that can change an answer."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import mmdiff

if TYPE_CHECKING:
    from torch import Tensor

    from mmdiff.model import MMDiffModel

# Words of a config that say where a model lies or who read it, not what it is; its decoding
# settings are recorded apart.
NOT_THE_MODEL = ("_name_or_path", "name_or_path", "transformers_version", "revision", "decoding")


def fingerprint(model: MMDiffModel) -> str:
    """sha256 over the weights as they are in memory, config, tokenizer, and this library's version.

    New weights at an old path, merged adapters and another dtype make another fingerprint.
    """
    digest = hashlib.sha256(f"mmdiff {mmdiff.__version__}\n".encode())
    config = model.config.to_dict()
    kept = {name: value for name, value in config.items() if name not in NOT_THE_MODEL}
    digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
    tokenizer = getattr(model.processor, "tokenizer", None)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    digest.update(backend.to_str().encode() if backend is not None else b"")
    digest.update(str(getattr(tokenizer, "chat_template", "")).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    """The tensor's memory; numpy has no bfloat16, so that the bytes are taken as they lie."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""
