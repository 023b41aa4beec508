"""`mmdiff.load`: a built-in name, a folder or a hub id -> a model ready to use."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff import adapters
from mmdiff.checkpoints import hub
from mmdiff.checkpoints.base import find, find_native, our_key
from mmdiff.errors import CheckpointError, SettingError, nearest

if TYPE_CHECKING:
    import torch

    from mmdiff.checkpoints.base import Family
    from mmdiff.decoding.settings import Decoding
    from mmdiff.model import MMDiffConfig, MMDiffModel

BUILT_IN = {"mmdiff/tiny": Path(__file__).parent / "tiny"}
DEFAULT = "mmdiff/tiny"


def resolve(name: str | Path, download: bool = False) -> Path:
    """The folder of a built-in name, path or hub id; raises CheckpointError with the nearest names.

    A hub id is looked up on this machine; the network is asked only with `download`.
    """
    if str(name) in BUILT_IN:
        return BUILT_IN[str(name)]
    path = Path(name)
    try:
        if (path / "config.json").is_file() or (path / adapters.CONFIG).is_file():
            return path
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:  # a name too long to be a path, a folder that may not be entered
        shown = str(name)[:200]
        raise CheckpointError(f"model {shown!r} cannot be read ({error.strerror})") from None
    if is_folder:
        raise CheckpointError(f"{path}: the folder holds no config.json, so it is no checkpoint")
    if exists:
        raise CheckpointError(f"{path}: a checkpoint is a folder with config.json, not a file")
    hint = nearest(str(name), BUILT_IN)
    if isinstance(name, str) and hub.NAME.fullmatch(name):
        return hub.find(name, download, hint)
    known = ", ".join(BUILT_IN)
    raise CheckpointError(
        f"model {str(name)!r} is neither a folder nor a built-in name ({known}).{hint}"
    )


def base_folder(folder: Path, depth: int = 0) -> Path:
    """The folder of the whole model that `folder` holds adapters for, or `folder` itself."""
    base = adapters.base_of(folder)
    if base is None:
        return folder
    if depth > 8:
        raise CheckpointError(f"{folder}: its adapters are for each other in a circle")
    return base_folder(resolve(base), depth + 1)


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json; neither torch nor the weights are loaded."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}/config.json cannot be read ({error})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder}/config.json holds no settings")
    return config


def model_config(folder: Path) -> tuple[Family, MMDiffConfig]:
    """The family that recognises the folder's config.json, and our config made of it."""
    published = read_config(folder)
    name, family = find(published, f"{folder}/config.json")
    config = config_of(family, published, folder)
    if name != "mmdiff":
        config.family, config.published = name, published
    config.revision = hub.commit(folder) or config.revision
    return family, config


def decoding_of(folder: Path, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Decoding:
    """The decoding settings `given` over the checkpoint's own over a task's `defaults`, with the
    weights left alone. Raises SettingError for what the model has not."""
    from mmdiff.decoding.settings import make_decoding

    folder = base_folder(folder)
    if native := find_native(read_config(folder)):
        return native.check(folder, given, defaults)
    return make_decoding(defaults, model_config(folder)[1].decoding, given)


def config_of(family: Family, published: dict[str, Any], folder: Path) -> MMDiffConfig:
    """Our config of a config.json of `family`; raises CheckpointError for one it cannot use."""
    from mmdiff.model import MMDiffConfig

    try:
        return MMDiffConfig.from_dict(family.config(published))
    except CheckpointError as error:
        raise CheckpointError(f"{folder}/{error}") from None
    except SettingError as error:
        raise CheckpointError(f"{folder}/config.json: {error}") from None
    except Exception as error:  # whatever values of a wrong type make the libraries raise
        raise CheckpointError(f"{folder}/config.json cannot be used ({error!r})") from None


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
    download: bool = False,
    device_map: str | Mapping[str, Any] | None = None,
) -> MMDiffModel:
    """Load a model strictly: a missing, extra or mis-shaped tensor raises CheckpointError. A folder
    of adapters opens as the base it names with the adapters merged (`mmdiff.adapters`).

    `device` defaults to CUDA when present, `dtype` to float32 on CPU and bfloat16 on CUDA. A device
    that is not there raises SettingError. A hub id is looked up on this machine; the network is
    asked only with `download`. `device_map` is transformers' word for `device`: "auto", a device,
    or a map that puts every part on the same one.
    """
    import torch

    from mmdiff.checkpoints import prompts, weights

    folder = resolve(name, download)
    if device_map is not None:
        device = one_device(device, device_map)
    if base := adapters.base_of(folder):
        return adapters.merge(load(base, device, dtype, download), folder)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(str(check_device(str(device))))
    if device.type == "cpu":
        device = torch.device("cpu")  # safetensors knows no cpu:0
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if isinstance(dtype, str):
        dtype = check_dtype(dtype)
    if native := find_native(read_config(folder)):
        opened = native.load(folder, device, dtype)
        opened.config.revision = hub.commit(folder)
        return opened
    family, config = model_config(folder)
    model = weights.empty(config, folder)
    weights.fill(model, folder, partial(our_key, family), device, dtype)
    model.processor = prompts.processor_of(model, family, folder)
    prompts.find_codec(model, folder)
    return model.to(device).eval()


def one_device(device: Any, device_map: str | Mapping[str, Any]) -> str | None:
    """The device that a `device_map` means, None for "auto"; SettingError where it names several or
    stands beside a `device`."""
    if device is not None:
        raise SettingError(f"device={device} and device_map={device_map!r}: give one of the two")
    named = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    places = sorted({f"cuda:{place}" if isinstance(place, int) else str(place) for place in named})
    if len(places) != 1:
        raise SettingError(f"device_map={device_map!r}: a model is loaded onto one device")
    return None if places == ["auto"] else places[0]


def check_dtype(name: str) -> torch.dtype:
    """The floating dtype called `name`; raises SettingError for any other word."""
    import torch

    dtypes = {n: getattr(torch, n) for n in ("float32", "bfloat16", "float16", "float64")}
    if name not in dtypes:
        raise SettingError(f"dtype {name!r} is unknown; use one of {', '.join(dtypes)}")
    return dtypes[name]
