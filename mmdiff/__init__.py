"""mmdiff: multimodal discrete diffusion models.

`mmdiff.load()` gives the built-in model; docs/architecture.md explains the words and the rooms.
Importing this package is cheap: torch and transformers load when a public name is first used.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a source checkout encoders/, heads/, data/, eval/ and configs/ stand beside this folder.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))

from mmdiff import compat  # noqa: E402

compat.install()

if TYPE_CHECKING:
    from mmdiff.canvas import Canvas
    from mmdiff.errors import MMDiffError
    from mmdiff.eval.runner import evaluate
    from mmdiff.loading import load
    from mmdiff.model import MMDiffConfig, MMDiffModel
    from mmdiff.processing import Processor

__all__ = ["Canvas", "MMDiffConfig", "MMDiffError", "MMDiffModel", "Processor", "evaluate", "load"]

_HOMES = {
    "Canvas": "mmdiff.canvas",
    "MMDiffConfig": "mmdiff.model",
    "MMDiffError": "mmdiff.errors",
    "MMDiffModel": "mmdiff.model",
    "Processor": "mmdiff.processing",
    "evaluate": "mmdiff.eval.runner",
    "load": "mmdiff.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mmdiff' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
