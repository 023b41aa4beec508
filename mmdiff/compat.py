"""Repairs torchvision and torchaudio builds whose compiled parts do not fit the installed torch.

On a CPU machine pip often brings CUDA builds of both beside a CPU torch. They then fail while being
imported, and take timm, open_clip and transformers' image classes with them. `install` puts a hook
before Python's finders; it imports nothing itself and acts when one of the two is first imported:
try, and on the known failure repair and try again. Everything written in Python works afterwards;
compiled operators (torchvision.ops.nms, torchaudio.load) still raise where they are called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_repaired: set[str] = set()
_kept_alive: list[Any] = []  # a torch.library.Library forgets its operators when collected


def _repair_torchvision(error: Exception) -> bool:
    """Define the two operators that torchvision describes without checking that they exist."""
    if not (isinstance(error, RuntimeError) and "torchvision::" in str(error)):
        return False
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    _kept_alive.append(library)
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return True


def _repair_torchaudio(error: Exception) -> bool:
    """Put a stand-in where torchaudio would load its compiled library."""
    if not (isinstance(error, OSError) and "torchaudio" in str(error)):
        return False

    def fail_if_no_align(function: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(*_: Any, **__: Any) -> Any:
            raise RuntimeError(f"{function.__name__} needs torchaudio's compiled library")

        return refuse

    stand_in = ModuleType("torchaudio._extension")
    stand_in._IS_TORCHAUDIO_EXT_AVAILABLE = False  # type: ignore[attr-defined]
    stand_in._IS_ALIGN_AVAILABLE = False  # type: ignore[attr-defined]
    stand_in._check_cuda_version = lambda: None  # type: ignore[attr-defined]
    stand_in.fail_if_no_align = fail_if_no_align  # type: ignore[attr-defined]
    sys.modules[stand_in.__name__] = stand_in
    return True


_REPAIRS: dict[str, Callable[[Exception], bool]] = {
    "torchvision": _repair_torchvision,
    "torchaudio": _repair_torchaudio,
}


class _RepairingLoader(Loader):
    """The package's own loader, with a second try after the repair."""

    def __init__(self, real: Loader) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)  # get_data, get_resource_reader, is_package, ...

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        module.__loader__ = self.real
        if module.__spec__ is not None:
            module.__spec__.loader = self.real
        fresh = dict(module.__dict__)
        try:
            self.real.exec_module(module)
        except Exception as error:
            for loaded in [key for key in sys.modules if key.startswith(name + ".")]:
                del sys.modules[loaded]
            if not _REPAIRS[name](error):
                raise
            module.__dict__.clear()
            module.__dict__.update(fresh)
            self.real.exec_module(module)
            _repaired.add(name)


class RepairFinder(MetaPathFinder):
    """Answers for the two packages alone, with the spec that the other finders give."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _REPAIRS:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, RepairFinder) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _RepairingLoader(spec.loader)
                return spec
        return None


def install() -> None:
    """Install the hook; a second call does nothing."""
    if not any(isinstance(finder, RepairFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, RepairFinder())


def status() -> dict[str, str]:
    """Import both and say for each: ok, repaired, missing, or 'broken: why'."""
    return {name: state(name) for name in _REPAIRS}


def state(name: str) -> str:
    """Import a top-level package and say: ok, repaired, missing, or 'broken: why'."""
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        return "missing" if error.name == name else f"broken: {error}"
    except Exception as error:
        return "broken: " + " ".join(str(error).split())
    return "repaired" if name in _repaired else "ok"
