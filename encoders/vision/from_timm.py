"""Vision networks of timm.

A spec has ``source: timm``, ``name`` and optionally ``kwargs`` for `timm.create_model`.
The tokens are those of the model's own ``forward_features`` without class and register tokens.
Input size, mean, std and resampling come from the model's published configuration unless the spec
states them.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmdiff.encoders.vision import sources
from mmdiff.encoders.vision.base import (
    COMMON_KEYS,
    VisionEncoder,
    as_tokens,
    check_keys,
    keep_buffers,
)
from mmdiff.errors import CheckpointError, SettingError, nearest, require

KEYS = (*COMMON_KEYS, "kwargs")


class TimmVision(VisionEncoder):
    def __init__(self, spec: dict, net: Any):
        super().__init__(spec)
        published = net.pretrained_cfg
        own_size = published.get("input_size", (3, 224, 224))[-1]
        size = spec.get("image_size") or spec.get("kwargs", {}).get("img_size") or own_size
        set_side(net, size)
        self.net = keep_buffers(without_head(net))
        mean, std = (spec.get(k) or published.get(k) or getattr(self, k) for k in ("mean", "std"))
        resample = spec.get("resample") or published.get("interpolation")
        resample = resample if resample in ("bilinear", "bicubic") else self.resample
        self.describe(spec["name"], size, mean, std, resample)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Normalised pictures (n, 3, image_size, image_size) -> (n, tokens, width)."""
        return patch_tokens(self.net, pixel_values)


def patch_tokens(net: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """The last features of `net` as (n, tokens, width), without class and register tokens."""
    features = net.forward_features(pixel_values)
    if features.dim() == 3:
        return features[:, getattr(net, "num_prefix_tokens", 0) :]
    if str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC"):
        return features.flatten(1, 2)
    return as_tokens(features)


def set_side(net: Any, side: int) -> None:
    """Make a transformer of timm take pictures of `side` pixels; convolutions take any size."""
    if hasattr(net, "set_input_size"):
        net.set_input_size(img_size=(side, side))


def without_head(net: Any) -> Any:
    """`net` without what only a classifier needs; such parameters would get no gradient."""
    if hasattr(net, "prune_intermediate_layers"):
        net.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
    for name in ("head", "fc_norm"):
        if isinstance(getattr(net, name, None), nn.Module):
            setattr(net, name, nn.Identity())
    return net


@sources.register("timm")
def build(spec: dict, weights: str | None = None, download: bool = False) -> TimmVision:
    """The encoder of `spec`; `weights` is a file, or ``published`` to download the model's own."""
    timm = require("timm", "vision", "vision source timm")
    check_keys(spec, KEYS, "vision encoder")
    name = spec.get("name", "")
    if not timm.is_model(name):
        hint = nearest(name, timm.list_models())
        raise SettingError(f"vision encoder: timm has no model {name!r}.{hint}")
    options: dict = {}
    if weights is not None:
        options["pretrained"] = True
        if Path(weights).is_file():
            options["pretrained_cfg_overlay"] = {"file": weights}
        elif weights != "published" or not download:
            raise CheckpointError(
                f"vision weights {weights!r}: no such file; "
                "give a file, or 'published' with download=True"
            )
    try:
        net = timm.create_model(name, num_classes=0, **spec.get("kwargs", {}), **options)
    except TypeError as error:
        raise SettingError(f"vision encoder {name}: wrong kwargs ({error})") from error
    return TimmVision(spec, net)
