"""Training checkpoints: written beside, renamed into place, the newest complete one found again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmdiff.errors import TrainingError
from mmdiff.training.shards import like, states, whole

if TYPE_CHECKING:
    from torch import nn

STATE = "state.json"


def contents(
    modules: dict[str, nn.Module], optimizers: list[torch.optim.Optimizer], keep: bool
) -> tuple[dict[str, dict[str, Tensor]], list[dict[str, Any]]]:
    """What `save` writes: modules' weights and optimisers' states, put together from the shards of
    all processes, which must all call this, for the one that will `keep` them.

    Frozen weights are left out: they are those of the recipe's model.
    """
    weights = {}
    for name, module in modules.items():
        still = frozen(module)
        learnt = {k: v for k, v in module.state_dict().items() if k not in still}
        weights[name] = {k: whole(v, keep).contiguous() for k, v in learnt.items()}
    gathered = [
        states(optimizer, optimizer.state_dict(), lambda value, _: whole(value, keep))
        for optimizer in optimizers
    ]
    return weights, gathered


def save(
    folder: Path,
    step: int,
    weights: dict[str, dict[str, Tensor]],
    optimizers: list[dict[str, Any]],
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write checkpoints/step-N of `contents`; a crash while writing leaves only a .partial folder
    behind."""
    final = folder / f"step-{step:07d}"
    partial = final.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, tensors in weights.items():
        save_file(tensors, partial / f"{name}.safetensors")
    torch.save(optimizers, partial / "optimizer.pt")
    (partial / STATE).write_text(json.dumps({"step": step, **state}))
    for path in (*partial.iterdir(), partial):
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _sync(folder)  # the name, too, survives a power cut
    for old in complete(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def frozen(module: nn.Module) -> set[str]:
    """Names of the parameters that do not learn."""
    return {name for name, value in module.named_parameters() if not value.requires_grad}


def complete(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.suffix == "" and (p / STATE).is_file())


def read_state(path: Path) -> dict[str, Any]:
    """What `save` got beside tensors, with the step. Raises TrainingError."""
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text())
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path / STATE} cannot be read ({error})") from None
    return state


def restore(
    path: Path, modules: dict[str, nn.Module], optimizers: list[torch.optim.Optimizer]
) -> None:
    """Load weights and optimiser state in place. Raises TrainingError."""
    try:
        for name, module in modules.items():
            tensors, own = load_file(path / f"{name}.safetensors"), module.state_dict()
            tensors = {k: like(v, own.get(k, v)) for k, v in tensors.items()}
            found = module.load_state_dict(tensors, strict=False)
            unlike = [*found.unexpected_keys, *(set(found.missing_keys) - frozen(module))]
            if unlike:
                raise ValueError(f"unlike tensors: {sorted(unlike)[0]}")
        written = torch.load(path / "optimizer.pt", weights_only=True)
        for optimizer, saved in zip(optimizers, written, strict=True):
            optimizer.load_state_dict(states(optimizer, saved, like))
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        first = str(error).strip().splitlines()[0]
        raise TrainingError(
            f"{path}: does not fit this recipe and cannot be resumed ({first})"
        ) from None
