"""Errors that a user can cause. Each text is one line: what is wrong, where, and the fix."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType


class MMDiffError(Exception):
    """Base of all user errors. The command line prints its text alone and exits with 2."""

    def __init__(self, message: object = "") -> None:
        super().__init__(" ".join(str(message).split()))


class SettingError(MMDiffError):
    """An unknown setting, a value of the wrong type or out of range, or an unknown name."""


class ImageError(MMDiffError):
    """A picture that is missing, damaged, too large or not a picture."""


class InputError(MMDiffError):
    """A request that cannot be answered: an empty question, too many pictures, a bad message."""


class CheckpointError(MMDiffError):
    """A model folder that is missing, incomplete or of an unknown family."""


class DataError(MMDiffError):
    """A data file or row that cannot be used."""


class MissingExtraError(MMDiffError):
    """An optional package that a feature needs is not installed or does not load."""


class TrainingError(MMDiffError):
    """Training cannot start or go on: nothing to train, a loss that is not finite, a bad resume."""


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean x or y?' with the names most like `name`; '' when none is near."""
    close = get_close_matches(name, list(known), n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def require(module_name: str, extra: str, feature: str = "this") -> ModuleType:
    """Import an optional module.

    Raises `MissingExtraError` naming the package and the `pip install` that brings it.
    """
    try:
        return import_module(module_name)
    except Exception as error:  # a broken binary package raises OSError or RuntimeError
        top = module_name.partition(".")[0]
        fix = f"pip install 'mmdiff[{extra}]'"
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == top:
            text = f"{feature} needs the package {top}: {fix}"
        else:
            text = f"{feature} needs the package {top}, which does not load ({error}): {fix}"
        raise MissingExtraError(text) from error
