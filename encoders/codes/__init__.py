"""Pictures as codes of a finite codebook, and back: one file per tokenizer.

A codec turns pixels (n, 3, H, W) in [-1, 1] into codes (n, h, w) and codes into pixels; h and w are
H and W over its `factor`, codes lie in [0, `size`). Weights are read strictly by `load_codec`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from mmdiff.registry import Registry


class Codec(Protocol):
    factor: int
    size: int

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (n, 3, H, W) in [-1, 1] -> codes (n, h, w)."""

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (n, h, w) -> pixels (n, 3, H, W), about [-1, 1]."""

    def to(self, device: Any) -> Any:
        """The codec on a device; pixels and codes may come from any other."""


CODECS: Registry[Callable[..., Any]] = Registry(
    "image codec", modules=("mmdiff.encoders.codes.magvit", "mmdiff.encoders.codes.amused")
)


def load_codec(
    kind: str,
    weights: str | Path,
    config: dict[str, Any] | None = None,
    device: Any = "cpu",
) -> Any:
    """The codec `kind` (magvit: MMaDA; amused: Lumina-DiMOO) with the weights of a folder or file.

    `config` gives sizes other than the published ones. Raises SettingError for an unknown kind,
    CheckpointError for weights that are missing or do not fit.
    """
    return CODECS.get(kind)(Path(weights), config).to(device)
