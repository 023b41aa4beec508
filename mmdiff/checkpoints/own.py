"""Our own folders: what `save_pretrained`, `mmdiff train` and `mmdiff convert` write."""

from __future__ import annotations

from mmdiff.checkpoints.base import FAMILIES, Family

FAMILIES.register("mmdiff")(
    Family(
        title="mmdiff",
        recognise=lambda config: config.get("model_type") == "mmdiff",
        config=dict,
        keys=(("", ""),),
    )
)
