"""`mmdiff.load`: a built-in name or a checkpoint folder -> a model ready to use."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.errors import CheckpointError, SettingError, nearest

if TYPE_CHECKING:
    import torch

    from mmdiff.model import MMDiffModel

BUILT_IN = {"mmdiff/tiny": Path(__file__).parent / "tiny"}
DEFAULT = "mmdiff/tiny"


def resolve(name: str | Path) -> Path:
    """The folder of a built-in name or path; raises CheckpointError with the nearest names."""
    if str(name) in BUILT_IN:
        return BUILT_IN[str(name)]
    path = Path(name)
    try:
        if (path / "config.json").is_file():
            return path
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:  # a name too long to be a path, a folder that may not be entered
        shown = str(name)[:200]
        raise CheckpointError(f"model {shown!r} cannot be read ({error.strerror})") from None
    if is_folder:
        raise CheckpointError(f"{path}: the folder holds no config.json, so it is no checkpoint")
    if exists:
        raise CheckpointError(f"{path}: a checkpoint is a folder with config.json, not a file")
    known = ", ".join(BUILT_IN)
    raise CheckpointError(
        f"model {str(name)!r} is neither a folder nor a built-in name ({known})."
        f"{nearest(str(name), BUILT_IN)}"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json, of a known family; neither torch nor the weights are loaded."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}/config.json cannot be read ({error})") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "mmdiff":
        raise CheckpointError(
            f"{folder}/config.json: model_type {kind!r} is unknown; known families: mmdiff"
        )
    return dict(config)


def check_device(name: str | None) -> str | None:
    """`name` again; SettingError for a device that is unknown or that this machine has not."""
    if name in (None, "cpu", "cpu:0"):
        return name
    if not re.fullmatch(r"(cuda|mps)(:\d{1,3})?", name):
        raise SettingError(f"device {name}: unknown; use cpu, cuda, cuda:1 or mps")
    import torch

    kind, _, number = name.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else int(torch.mps.device_count())
    if int(number or 0) >= count:
        raise SettingError(f"device {name}: there are {count} {kind} devices here; use cpu")
    return name


def load(
    name: str | Path = DEFAULT,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> MMDiffModel:
    """Load a model strictly: a missing, extra or mis-shaped tensor raises CheckpointError.

    `device` defaults to CUDA when present, `dtype` to float32 on CPU and bfloat16 on CUDA. A device
    that is not there raises SettingError.
    """
    import torch

    from mmdiff.model import MMDiffModel

    folder = resolve(name)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(str(check_device(str(device))))
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model, info = _from_pretrained(MMDiffModel, folder, dtype)
    _check(folder, info)
    return model.to(device).eval()


def _from_pretrained(cls: Any, folder: Path, dtype: Any) -> tuple[Any, dict[str, Any]]:
    read_config(folder)
    try:
        model, info = cls.from_pretrained(
            folder,
            dtype=dtype,
            output_loading_info=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # so that they are listed, for _check to refuse
        )
    except CheckpointError:
        raise
    except Exception as error:  # whatever a broken file makes the libraries raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(f"{folder}: the checkpoint cannot be read ({first})") from error
    return model, info


def _check(folder: Path, info: dict[str, Any]) -> None:
    for kind, words in (
        ("missing_keys", "lacks the weight"),
        ("unexpected_keys", "holds a weight that the model has not"),
        ("mismatched_keys", "holds a weight of the wrong shape"),
    ):
        keys = sorted(str(k[0] if isinstance(k, tuple) else k) for k in info.get(kind, ()))
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise CheckpointError(f"{folder}: the checkpoint {words}: {keys[0]}{more}")
