"""The vision tower of Qwen2.5-VL: pictures of any size, window attention, 2 x 2 patches merged.

A spec has ``source: qwen2_5_vl`` and ``config``, arguments of transformers'
`Qwen2_5_VLVisionConfig`. It reads the patches of `mmdiff.encoders.vision.patches`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmdiff.encoders.vision import sources
from mmdiff.encoders.vision.base import VisionEncoder, check_keys
from mmdiff.errors import SettingError

KEYS = ("source", "name", "config", "attention")


class QwenVision(VisionEncoder):
    """Pictures come as patches of one row each with their grids, not as a batch of squares, so
    `image_size` and `tokens` are 0."""

    def __init__(self, spec: dict, net: nn.Module, config: Any):
        super().__init__(spec)
        self.net = net
        self.name, self.width = spec.get("name", config.model_type), config.out_hidden_size
        self.image_size = self.tokens = 0

    def spec(self) -> dict:
        return self._spec

    def forward(self, pixel_values: Tensor, grids: Tensor | None = None) -> Tensor:
        """Patches (n, values) of all pictures and `grids` (pictures, 3), their frames, rows and
        columns of patches -> (cells, width), picture by picture and row by row."""
        assert grids is not None
        made: Tensor = self.net(pixel_values, grid_thw=grids.to(pixel_values.device)).pooler_output
        return made


@sources.register("qwen2_5_vl")
def build(spec: dict, weights: str | None = None, download: bool = False) -> QwenVision:
    """The tower of `spec` with random weights; those of a checkpoint come with its model."""
    from transformers.models.qwen2_5_vl import configuration_qwen2_5_vl, modeling_qwen2_5_vl

    check_keys(spec, KEYS, "vision encoder")
    if weights is not None:
        raise SettingError("vision encoder qwen2_5_vl: load its weights with a whole checkpoint")
    config_class = configuration_qwen2_5_vl.Qwen2_5_VLVisionConfig
    check_keys(spec.get("config", {}), config_class().to_dict(), "vision encoder qwen2_5_vl")
    try:
        config = config_class(**spec.get("config", {}))
        net = modeling_qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel._from_config(
            config, attn_implementation=spec.get("attention", "sdpa")
        )
    except (TypeError, ValueError, ArithmeticError) as error:
        raise SettingError(f"vision encoder qwen2_5_vl: wrong config ({error})") from error
    return QwenVision(spec, net, config)
