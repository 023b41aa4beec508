"""The small interface behind which every vision network stands."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from mmdiff.errors import SettingError, nearest

COMMON_KEYS = ("source", "name", "image_size", "mean", "std", "resample")


class VisionEncoder(nn.Module):
    """A network that turns square pictures into tokens.

    Subclasses build their network, then call `describe` once with it. Attributes:

    - ``name``: for messages and tables.
    - ``image_size``: side of the square input, pixels.
    - ``tokens``, ``width``: what one picture becomes.
    - ``mean``, ``std``: three numbers each; the caller normalises pixels of [0, 1] with them.
    - ``resample``: the filter for resizing, ``bicubic`` or ``bilinear``.
    """

    name: str
    image_size: int
    tokens: int
    width: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resample: str = "bicubic"

    def __init__(self, spec: dict):
        super().__init__()
        self._spec = spec

    def spec(self) -> dict:
        """A JSON-able dict from which `build_vision` makes the same architecture."""
        return self._spec | {
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "resample": self.resample,
        }

    def describe(self, name: str, image_size: int, mean, std, resample: str) -> None:
        """Set the attributes; ``tokens`` and ``width`` come from a forward without storage."""
        if resample not in ("bicubic", "bilinear"):
            raise SettingError(
                f"vision encoder {name}: resample is {resample!r}; use bicubic or bilinear"
            )
        if len(mean) != 3 or len(std) != 3:
            raise SettingError(f"vision encoder {name}: mean and std need three numbers each")
        self.name, self.image_size, self.resample = name, image_size, resample
        self.mean, self.std = tuple(mean), tuple(std)
        self.tokens, self.width = output_shape(self, image_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Normalised pictures (n, 3, image_size, image_size) -> (n, tokens, width)."""
        raise NotImplementedError


def output_shape(module: nn.Module, image_size: int) -> tuple[int, int]:
    """(tokens, width) of `module` for a square picture, found with tensors that have no storage."""
    weights = {k: v.to("meta") for k, v in [*module.named_parameters(), *module.named_buffers()]}
    pixels = torch.zeros(1, 3, image_size, image_size, device="meta")
    training = module.training
    module.eval()  # batch statistics of a single 1 x 1 map would be refused
    with torch.no_grad():
        out = functional_call(module, weights, (pixels,))
    module.train(training)
    return out.shape[1], out.shape[2]


def as_tokens(features: torch.Tensor) -> torch.Tensor:
    """A feature map (n, width, h, w) as (n, h*w, width), row by row; tokens stay as they are."""
    return features.flatten(2).transpose(1, 2) if features.dim() == 4 else features


def keep_buffers(net: Any) -> Any:
    """`net` with every buffer in its state dict.

    A model that transformers loads is made without storage first; a buffer that is not in the
    checkpoint would stay empty unless its module can make it again, which only transformers' own
    modules can.
    """
    for module in net.modules():
        module._non_persistent_buffers_set.clear()
    return net


def check_keys(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """SettingError naming the first key of `given` that is not among `known`."""
    known = list(known)
    for key in given:
        if key not in known:
            raise SettingError(
                f"{where}: unknown key {key!r}.{nearest(key, known)} "
                f"Known: {', '.join(sorted(known))}"
            )
