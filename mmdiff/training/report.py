"""Where a run's figures go beside log.jsonl: TensorBoard's files, or another of accelerate's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdiff.config import to_dict
from mmdiff.errors import MissingExtraError, require
from mmdiff.training.recipe import Recipe

NAMES = {"tensorboard": "TensorBoard", "wandb": "report=wandb"}


def available(report: str) -> str:
    """'' where the package that `report` needs is there, else what its absence means.

    Raises MissingExtraError for wandb, which nobody gets without asking for it.
    """
    if report == "none":
        return ""
    try:
        require(report, report, NAMES[report])
    except MissingExtraError as error:
        if report == "wandb":
            raise
        return f"figures go to log.jsonl alone: {error}"
    return ""


def tracker(recipe: Recipe, step: int) -> Any:
    """accelerate's tracker of a run that goes on behind `step`, whose package is available; None
    where there is nothing to report to.

    TensorBoard's files lie in the output folder, so that `tensorboard --logdir runs` shows runs by
    their folders' names; figures of steps that are taken again are hidden.
    """
    folder = Path(recipe.output)
    if recipe.report == "tensorboard" and not available(recipe.report):
        from accelerate.tracking import TensorBoardTracker

        made = TensorBoardTracker(folder.name, folder.parent, purge_step=step + 1)
    elif recipe.report == "wandb":
        from accelerate.tracking import WandBTracker

        made = WandBTracker("mmdiff", name=folder.name, dir=folder, config=to_dict(recipe))
    else:
        return None
    made.start()
    return made
