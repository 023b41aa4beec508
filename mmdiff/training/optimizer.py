"""Optimisers: AdamW, or Muon for the hidden matrices with AdamW for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mmdiff.errors import SettingError

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel
    from mmdiff.training.recipe import Recipe


def make_optimizers(model: MMDiffModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Matrices decay, vectors and embeddings do not.

    `muon` (Jordan et al. 2024, torch.optim.Muon) orthogonalises the updates of the backbone's and
    projector's 2-D weights; update sizes are matched to AdamW's (Moonlight, arXiv:2502.16982).
    Raises SettingError where torch has no Muon.
    """
    if recipe.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        raise SettingError(f"torch {torch.__version__} has no Muon; use optimizer=adamw")
    embedding = model.get_input_embeddings().weight
    params = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    matrix = [(n, p) for n, p in params if p.ndim >= 2 and p is not embedding]
    vector = [p for n, p in params if p.ndim < 2 or p is embedding]
    muon: list[torch.Tensor] = []
    if recipe.optimizer == "muon":
        muon = [p for n, p in matrix if p.ndim == 2]
    rest = [p for n, p in matrix if not any(p is m for m in muon)]
    groups = [
        {"params": rest, "weight_decay": recipe.weight_decay},
        {"params": vector, "weight_decay": 0.0},
    ]
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)
    ]
    if muon:
        made.append(
            torch.optim.Muon(
                muon,
                lr=recipe.muon_lr or recipe.lr,
                weight_decay=recipe.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return made


def set_rate(optimizers: list[torch.optim.Optimizer], recipe: Recipe, step: int) -> None:
    """The recipe's learning rates of this step, also where a checkpoint was made with others."""
    for optimizer in optimizers:
        muon = type(optimizer).__name__ == "Muon"
        peak = recipe.muon_lr or recipe.lr if muon else recipe.lr
        for group in optimizer.param_groups:
            group["lr"] = peak * recipe.rate(step)
