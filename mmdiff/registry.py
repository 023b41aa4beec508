"""Registries: a name on the command line or in YAML -> the function or class behind it.

A new part is one new file with a decorated function or class. The files are imported on the first
look-up, so that building the registry costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Generic, TypeVar, cast

from mmdiff.errors import SettingError, nearest

T = TypeVar("T")
Part = TypeVar("Part")  # so that a decorated class keeps its own type


class Registry(Generic[T]):
    """Named parts of one `kind`; importing `modules` registers the shipped ones."""

    def __init__(self, kind: str, modules: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self._pending = list(modules)
        self._parts: dict[str, T] = {}

    def register(self, name: str) -> Callable[[Part], Part]:
        """Decorator. A second part under the same name is a bug and raises RuntimeError."""

        def add(part: Part) -> Part:
            if name in self._parts:
                raise RuntimeError(f"the {self.kind} {name!r} is registered twice")
            self._parts[name] = cast(T, part)
            return part

        return add

    def get(self, name: str) -> T:
        """The part called `name`; SettingError with the nearest and all known names otherwise."""
        self._load()
        if name not in self._parts:
            known = ", ".join(self.names()) or "none"
            hint = nearest(str(name), self._parts)
            raise SettingError(f"unknown {self.kind} {name!r}.{hint} Known: {known}")
        return self._parts[name]

    def names(self) -> list[str]:
        self._load()
        return sorted(self._parts)

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._parts

    def _load(self) -> None:
        # A module may look something up while it is imported, so it leaves the list first;
        # it goes back when its import fails, so that a retry tells the same story.
        while self._pending:
            module = self._pending.pop(0)
            try:
                import_module(module)
            except BaseException:
                self._pending.insert(0, module)
                raise
