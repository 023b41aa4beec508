"""Weights, gradients and optimiser states in shards, one per process (FSDP2: torch's fully_shard).

A sharded tensor is a DTensor; what is written to disk is whole, so that a checkpoint fits any
number of processes and a run without shards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmdiff.errors import SettingError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mmdiff.model import MMDiffModel


def shard(loss: nn.Module, model: MMDiffModel, accelerator: Accelerator) -> None:
    """Shard `loss` in place: each layer of the model's backbone as one, all else as one.

    Every parameter is a DTensor afterwards, so optimisers are made behind this. Raises SettingError
    where there is one process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if accelerator.num_processes == 1:
        raise SettingError("shard=true needs several processes: accelerate launch, torchrun")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for layer in getattr(model.backbone, "layers", ()):
        fully_shard(layer, mesh=mesh)
    fully_shard(loss, mesh=mesh, reshard_after_forward=True)


def whole(tensor: Tensor, keep: bool = True) -> Tensor:
    """A tensor as every process sees it; a sharded one put together in this process's memory, empty
    where it is not to `keep` it. All processes must ask for the same tensors in the same order."""
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.full_tensor().detach()
    return full.cpu() if keep else full.new_empty(0, device="cpu")


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor sharded as `other` of its shape is; plain where that is plain."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(other, DTensor) or tensor.shape != other.shape:
        return tensor
    here = tensor.to(other.device)
    # Every process has read the same file, so none has to send its part to others.
    return distribute_tensor(here, other.device_mesh, other.placements, src_data_rank=None)


def put_together(model: MMDiffModel, keep: bool) -> MMDiffModel:
    """A copy of a sharded model in this process's memory where it is to `keep` it, the model itself
    in other processes, which must call this, too."""
    tensors = {name: whole(value, keep) for name, value in model.state_dict().items()}
    if not keep:
        return model
    made = type(model)(model.config)
    made.load_state_dict(tensors)
    return made


def states(
    optimizer: torch.optim.Optimizer, saved: dict[str, Any], change: Callable[..., Tensor]
) -> dict[str, Any]:
    """An optimiser's state_dict `saved` with each tensor changed, given its parameter beside it."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    made = {
        number: {
            key: change(value, parameters[number]) if isinstance(value, Tensor) else value
            for key, value in state.items()
        }
        for number, state in saved["state"].items()
    }
    return {**saved, "state": made}
