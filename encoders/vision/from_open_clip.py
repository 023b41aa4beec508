"""Vision towers of open_clip.

A spec has ``source: open_clip`` and ``name``, or ``model_cfg`` with open_clip's own model settings.
The tokens are the tower's patch tokens after its last norm, or the feature map in front of a
ResNet's pooling. The text tower is never built unless published weights are read.
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
from mmdiff.encoders.vision.from_timm import patch_tokens, set_side, without_head
from mmdiff.errors import CheckpointError, SettingError, nearest, require

KEYS = (*COMMON_KEYS, "model_cfg")
NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}


class OpenClipVision(VisionEncoder):
    def __init__(self, spec: dict, tower: Any, preprocess: dict):
        super().__init__(spec)
        size = tower.image_size
        side = size if isinstance(size, int) else size[0]
        if hasattr(tower, "trunk"):
            set_side(tower.trunk, side)
        self.net = keep_buffers(without_pooling(tower))
        stated = preprocess | {"resample": preprocess.get("interpolation", self.resample)} | spec
        name = spec.get("name", "open_clip")
        self.describe(name, side, stated["mean"], stated["std"], stated["resample"])

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Normalised pictures (n, 3, image_size, image_size) -> (n, tokens, width)."""
        if hasattr(self.net, "trunk"):
            return patch_tokens(self.net.trunk, pixel_values)
        features = self.net(pixel_values)
        return features[1] if isinstance(features, tuple) else as_tokens(features)


def without_pooling(tower: Any) -> Any:
    """`tower` set to return its patch tokens, without the parts that only pooling needs."""
    if hasattr(tower, "trunk"):
        tower.head = nn.Identity()
        without_head(tower.trunk)
    elif hasattr(tower, "attnpool"):
        tower.attnpool = nn.Identity()
    else:
        if tower.attn_pool is not None or tower.final_ln_after_pool:
            tower.ln_post = nn.Identity()  # it norms pooled vectors, which are not made any more
        tower.attn_pool = tower.proj = None
        tower.pool_type, tower.output_tokens = "tok", True
    return tower


def model_settings(open_clip, spec: dict) -> dict:
    """A copy of the model's settings, with the spec's image size and without patch dropout."""
    name = spec.get("name", "")
    settings = spec.get("model_cfg") or open_clip.get_model_config(name)
    if settings is None:
        hint = nearest(name, open_clip.list_models())
        raise SettingError(f"vision encoder: open_clip has no model {name!r}.{hint}")
    vision = {**settings["vision_cfg"], "patch_dropout": 0.0, "timm_model_pretrained": False}
    vision["image_size"] = spec.get("image_size", vision.get("image_size", 224))
    return {**settings, "vision_cfg": vision}


@sources.register("open_clip")
def build(spec: dict, weights: str | None = None, download: bool = False) -> OpenClipVision:
    """The tower of `spec`; `weights` is a file or, with `download`, a tag of open_clip."""
    open_clip = require("open_clip", "vision", "vision source open_clip")
    check_keys(spec, KEYS, "vision encoder")
    settings = model_settings(open_clip, spec)
    quick_gelu = settings.get("quick_gelu", False)
    tower = open_clip.CLIP(
        settings["embed_dim"], settings["vision_cfg"], NO_TEXT, quick_gelu=quick_gelu
    ).visual
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    if weights is not None:
        published = published_tower(open_clip, spec, settings, weights, download)
        tower.load_state_dict(published.state_dict())
        preprocess = published.preprocess_cfg
    return OpenClipVision(spec, tower, preprocess)


def published_tower(open_clip, spec: dict, settings: dict, weights: str, download: bool) -> Any:
    if spec.get("model_cfg"):
        raise SettingError("vision encoder: open_clip weights need the model's name, not model_cfg")
    if not download and not Path(weights).is_file():
        raise CheckpointError(
            f"vision weights {weights!r}: no such file; give a file, or a tag with download=True"
        )
    size = settings["vision_cfg"]["image_size"]
    return open_clip.create_model(spec["name"], pretrained=weights, force_image_size=size).visual
