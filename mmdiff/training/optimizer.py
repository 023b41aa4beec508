"""Optimisers: AdamW, or Muon for the hidden matrices with AdamW for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mmdiff.config import to_dict
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
    plain: list[dict[str, Any]] = []
    muon: list[dict[str, Any]] = []
    for part in to_dict(recipe.rates):
        params = [p for p in parameters(model, part) if p.requires_grad]
        groups: dict[str, list[torch.Tensor]] = {"vector": [], "matrix": [], "muon": []}
        for p in params:
            kind = "vector" if p.ndim < 2 or p is embedding else "matrix"
            if kind == "matrix" and p.ndim == 2 and recipe.optimizer == "muon":
                kind = "muon"
            groups[kind].append(p)
        for kind, members in groups.items():
            decay = 0.0 if kind == "vector" else recipe.weight_decay
            group = {"params": members, "weight_decay": decay, "part": part, "muon": kind == "muon"}
            if members:
                (muon if kind == "muon" else plain).append(group)
    made: list[torch.optim.Optimizer] = []
    if plain:
        made.append(torch.optim.AdamW(plain, lr=recipe.lr, betas=recipe.betas, fused=True))
    if muon:
        made.append(torch.optim.Muon(muon, lr=recipe.lr, adjust_lr_fn="match_rms_adamw"))
    return made


def parameters(model: MMDiffModel, part: str) -> list[torch.Tensor]:
    """Those of the vision tower, the projector, or the backbone with all that stands beside it."""
    others = ("vision.", "projector.")
    if part == "backbone":
        return [p for n, p in model.named_parameters() if not n.startswith(others)]
    return [p for n, p in model.named_parameters() if n.startswith(f"{part}.")]


def freeze(model: MMDiffModel, recipe: Recipe) -> None:
    """No gradients for parts whose rate is 0."""
    for part, factor in to_dict(recipe.rates).items():
        for parameter in parameters(model, part) if not factor else ():
            parameter.requires_grad_(False)


def set_rate(optimizers: list[torch.optim.Optimizer], recipe: Recipe, step: int) -> None:
    """The recipe's learning rates of this step, also where a checkpoint was made with others."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            peak = recipe.muon_lr or recipe.lr if group["muon"] else recipe.lr
            factor = getattr(recipe.rates, group["part"])
            group["lr"] = peak * factor * recipe.rate(step)
