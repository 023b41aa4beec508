"""Tensors of a checkpoint folder, read shard by shard and put into a model strictly."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmdiff.errors import CheckpointError

if TYPE_CHECKING:
    from mmdiff.model import MMDiffConfig, MMDiffModel

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def files(folder: Path) -> list[Path]:
    """The weight files of a folder, all of them there.

    Raises CheckpointError for an index that names a missing file or one outside the folder.
    """
    for name in (INDEX, PICKLES[1]):
        if not (folder / name).is_file():
            continue
        try:
            named = sorted(set(json.loads((folder / name).read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder}/{name}: cannot be read ({error!r})") from None
        for shard in named:
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise CheckpointError(f"{folder}/{name}: {shard!r} is not a file of this folder")
            if not (folder / shard).is_file():
                raise CheckpointError(f"{folder}: the shard {shard} that {name} names is missing")
        return [folder / shard for shard in named]
    for name in (SINGLE, PICKLES[0]):
        if (folder / name).is_file():
            return [folder / name]
    raise CheckpointError(f"{folder}: there is no {SINGLE} and no {INDEX}; the weights are missing")


def tensors(path: Path, device: str) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of one file. A pickle is read with `weights_only`, refused if it needs more.

    Raises CheckpointError for a file that is damaged or holds anything but named tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt", device=device) as shard:
                for name in shard.keys():  # noqa: SIM118
                    yield name, shard.get_tensor(name)
        else:
            made = torch.load(path, map_location=device, weights_only=True, mmap=True)
            for name, tensor in made.items():
                if not isinstance(name, str) or not isinstance(tensor, Tensor):
                    raise CheckpointError(f"{path}: the entry {name!r} is no named tensor")
                yield name, tensor
    except CheckpointError:
        raise
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: is damaged or holds more than tensors, which is never unpickled"
        ) from None
    except Exception as error:  # whatever a truncated or hostile file makes the libraries raise
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(f"{path}: cannot be read ({reason})") from None


def empty(config: MMDiffConfig, folder: Path) -> MMDiffModel:
    """The model of a config with parameters that have no storage; buffers are real.

    The bounds of pictures that keep their size are those of the folder's preprocessor_config.json.
    Raises CheckpointError where the config describes no model.
    """
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    from mmdiff.encoders.vision.patches import Patching
    from mmdiff.model import MMDiffModel

    try:
        with init_empty_weights(include_buffers=False), no_init_weights():
            model = MMDiffModel(config)
    except Exception as error:  # whatever odd sizes make the libraries raise
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(f"{folder}/config.json describes no model ({reason})") from error
    if isinstance(model.tiling, Patching):
        model.tiling = model.tiling.with_file(folder)
    return model


def checked(
    model: nn.Module, folder: Path, rename: Callable[[str], str | None], device: str
) -> Iterator[tuple[str, Tensor]]:
    """(key of the model, tensor) of every tensor that `model` wants, read one by one.

    `rename` maps a key of the files to one of the model, or to None for a tensor to leave out.
    Raises CheckpointError naming an extra, doubled or mis-shaped tensor, in the end a missing one.
    """
    where = f"{folder}: the checkpoint"
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    missing = set(wanted)
    for path in files(folder):
        for key, tensor in tensors(path, device):
            try:
                ours = rename(key)
            except CheckpointError as error:
                raise CheckpointError(f"{where} {error}") from None
            if ours is None:
                continue
            if ours not in wanted:
                raise CheckpointError(f"{where} holds a weight that the model has not: {key}")
            if ours not in missing:
                raise CheckpointError(f"{where} holds a weight twice: {key}")
            if wanted[ours] != tuple(tensor.shape):
                raise CheckpointError(
                    f"{where} holds a weight of the wrong shape: {key} is "
                    f"{tuple(tensor.shape)}, not {wanted[ours]}"
                )
            missing.remove(ours)
            yield ours, tensor
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{where} lacks the weight: {min(missing)}{more}")


def open_stock(network_class: Any, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """A network of transformers' own class from a folder of safetensors, strictly, no code of the
    folder run. Raises CheckpointError where it cannot be loaded, or a tensor is missing, unknown or
    of the wrong shape."""
    try:
        network, report = network_class.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": str(device)},
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # whatever odd files make transformers raise
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(f"{folder}: cannot be loaded ({reason})") from error
    for kind, word in (
        ("missing_keys", "lacks the weight"),
        ("unexpected_keys", "holds a weight that the model has not"),
        ("mismatched_keys", "holds a weight of the wrong shape"),
    ):
        if report.get(kind):
            first = min(str(key) for key in report[kind])
            raise CheckpointError(f"{folder}: the checkpoint {word}: {first}")
    return network.eval()


def fill(
    model: nn.Module,
    folder: Path,
    rename: Callable[[str], str | None],
    device: Any,
    dtype: torch.dtype,
) -> None:
    """Give every parameter and stored buffer of `model` its tensor, cast to `dtype` if floating.

    Raises CheckpointError as `checked` does.
    """
    for key, tensor in checked(model, folder, rename, str(device)):
        put(model, key, tensor.to(dtype) if tensor.is_floating_point() else tensor)


def put(model: nn.Module, key: str, tensor: Tensor) -> None:
    """Put `tensor` in the place of the parameter or buffer called `key`."""
    path, _, name = key.rpartition(".")
    module = model.get_submodule(path)
    if name in module._parameters:
        module._parameters[name] = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
    else:
        module._buffers[name] = tensor
