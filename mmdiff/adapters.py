"""Low-rank adapters of the backbone (LoRA, DoRA) through peft, and folders that hold them.

Such a folder has peft's own two files and, beside them, the modules that were trained whole
(projector, tower). `mmdiff.load` opens it like any other: the base it names, with the adapters
merged into its weights, so that evaluation and decoding know nothing of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.errors import CheckpointError, require

if TYPE_CHECKING:
    import torch

    from mmdiff.model import MMDiffModel
    from mmdiff.training.recipe import Lora

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
WHOLE = "trained_modules.safetensors"


def peft() -> Any:
    return require("peft", "lora", "a LoRA adapter")


def inject(model: MMDiffModel, lora: Lora) -> None:
    """Adapters on the backbone's linear layers; its own weights are frozen.

    Raises CheckpointError where no layer bears one of the `targets`.
    """
    library = peft()
    config = library.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_dora=lora.dora,
        target_modules=list(lora.targets) or "all-linear",
    )
    try:
        library.inject_adapter_in_model(config, model.backbone)
    except ValueError as error:
        raise CheckpointError(f"lora: {str(error).splitlines()[0]}") from None


def save(model: MMDiffModel, folder: Path, base: str) -> None:
    """The backbone's adapters, for the model `base`, and the other modules' trained weights."""
    from safetensors.torch import save_file

    library = peft()
    config = next(iter(model.backbone.peft_config.values()))
    config.base_model_name_or_path = base
    config.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    adapters = library.get_peft_model_state_dict(model.backbone)
    save_file({k: v.contiguous() for k, v in adapters.items()}, folder / WEIGHTS)
    whole = {
        name: value.detach().contiguous()
        for name, value in model.named_parameters()
        if value.requires_grad and not name.startswith("backbone.")
    }
    save_file(whole, folder / WHOLE)
    config.save_pretrained(str(folder))


def base_of(folder: Path) -> str | None:
    """What the folder's adapters are for; None where it holds none. Raises CheckpointError."""
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r})") from None
    if not isinstance(base, str):
        raise CheckpointError(f"{path} names no base_model_name_or_path")
    return base


def merge(model: MMDiffModel, folder: Path) -> MMDiffModel:
    """The base `model` with the folder's adapters in its weights, plain modules again.

    Raises CheckpointError where they do not fit each other.
    """
    from safetensors.torch import load_file

    library = peft()
    try:
        config = library.PeftConfig.from_pretrained(str(folder))
        library.inject_adapter_in_model(config, model.backbone)
        adapters = {k: v.to(model.device) for k, v in load_file(folder / WEIGHTS).items()}
        found = library.set_peft_model_state_dict(model.backbone, adapters)
        missing = [key for key in found.missing_keys if "lora_" in key]
        if missing or found.unexpected_keys:
            raise ValueError(f"unlike tensors: {(missing + found.unexpected_keys)[0]}")
        whole = load_file(folder / WHOLE)
        unknown = model.load_state_dict(whole, strict=False).unexpected_keys
        if unknown:
            raise ValueError(f"unlike tensors: {unknown[0]}")
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{folder}: adapters that do not fit their base ({reason})") from None
    _merge_layers(model.backbone)
    return model


def _merge_layers(backbone: torch.nn.Module) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(backbone.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent = backbone.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], layer.get_base_layer())
    for parameter in backbone.parameters():
        parameter.requires_grad_(True)
    del backbone.peft_config
