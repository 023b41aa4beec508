"""Vision encoders by source: the ``source`` of a spec, a JSON-able dict, names a file here."""

from collections.abc import Callable

from mmdiff.encoders.vision.base import VisionEncoder
from mmdiff.errors import SettingError
from mmdiff.registry import Registry

sources: Registry[Callable[..., VisionEncoder]] = Registry(
    "vision encoder source",
    modules=(
        "mmdiff.encoders.vision.from_transformers",
        "mmdiff.encoders.vision.from_timm",
        "mmdiff.encoders.vision.from_open_clip",
        "mmdiff.encoders.vision.from_qwen",
    ),
)


def build_vision(spec: dict, weights: str | None = None, download: bool = False) -> VisionEncoder:
    """The encoder that `spec` describes, with random weights or with those of `weights`.

    `weights` is what the source itself loads: a transformers folder or hub name; for timm and
    open_clip a file or the name of published weights. The network is asked only with `download`.
    Raises SettingError for a spec without a known source or with wrong keys, CheckpointError for
    weights that are missing or do not fit.
    """
    if "source" not in spec:
        raise SettingError(
            f"vision encoder: the spec has no 'source'; use one of {', '.join(sources.names())}"
        )
    return sources.get(spec["source"])(spec, weights, download)
