"""Settings: frozen dataclasses filled from YAML files and `a.b=value` arguments.

An unknown key, a missing key and a value of the wrong type are a `SettingError` that names the key
and where it stands. Reading order: `build`, `_convert`, then the readers below them.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from mmdiff.errors import SettingError, nearest

T = TypeVar("T")

_ASSIGNMENT = re.compile(r"[A-Za-z_][\w.]*=")
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    type(None): "none",
}


def build(cls: type[T], mapping: Mapping[str, Any], where: str = "settings") -> T:
    """Fill the dataclass `cls` from `mapping`, nested dataclasses included.

    A class with a static method `expand` gets what was written through it first: that turns
    shorthand, such as a preset's name, into the settings it stands for.

    `where` names the source in errors, such as a file. A ValueError or SettingError raised by the
    class's own `__post_init__` is reported with it.
    """
    return _build(cls, mapping, where, "")


def _build(cls: Any, mapping: Any, where: str, prefix: str) -> Any:
    if hasattr(cls, "expand"):
        try:
            mapping = cls.expand(mapping)
        except SettingError as error:
            raise SettingError(f"{where}: {prefix}{error}") from error
    if not isinstance(mapping, Mapping):
        name = f"{prefix.rstrip('.')} must be" if prefix else "expected"
        raise SettingError(f"{where}: {name} a group of settings, got {mapping!r}")
    hints = get_type_hints(cls)
    known = {field.name: field for field in fields(cls) if field.init}
    for key in mapping:
        if key not in known:
            names = ", ".join(prefix + name for name in known)
            hint = nearest(str(key), known)
            raise SettingError(f"{where}: unknown setting {prefix}{key}.{hint} Known: {names}")
    values = {
        key: _convert(hints[key], value, where, prefix + key) for key, value in mapping.items()
    }
    for name, field in known.items():
        required = field.default is MISSING and field.default_factory is MISSING
        if required and name not in values:
            raise SettingError(f"{where}: the setting {prefix}{name} is missing")
    try:
        return cls(**values)
    except (ValueError, SettingError) as error:
        raise SettingError(f"{where}: {prefix}{error}") from error


def _convert(kind: Any, value: Any, where: str, key: str) -> Any:
    """`value` as the annotated type `kind`, or a SettingError."""
    origin = get_origin(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return value if isinstance(value, kind) else _build(kind, value, where, key + ".")  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        return _convert_union(kind, value, where, key)
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in get_args(kind)):
            hint = nearest(str(value), map(str, get_args(kind)))
            raise SettingError(f"{where}: {key} must be {_describe(kind)}, got {value!r}.{hint}")
        return value
    if (origin or kind) in (list, tuple):
        return _convert_sequence(kind, value, where, key)
    if (origin or kind) is dict:
        return _convert_dict(kind, value, where, key)
    return _convert_scalar(kind, value, where, key)


def _convert_scalar(kind: Any, value: Any, where: str, key: str) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is bool and isinstance(value, str) and value.lower() in _BOOLEANS:
        return _BOOLEANS[value.lower()]
    if kind is float and (number or isinstance(value, str)):
        # YAML 1.1 reads 1e-4 (no dot) as text.
        try:
            result = float(value)
        except (ValueError, OverflowError):
            result = math.nan
        if not math.isnan(result):
            return result
    elif kind is int and number and isinstance(value, int):
        return value
    elif kind is Path and isinstance(value, (str, Path)):
        return Path(value)
    elif kind is not int and isinstance(kind, type) and isinstance(value, kind):
        return value
    quote = f""" (write '"{value}"')""" if kind is str and number else ""
    raise SettingError(f"{where}: {key} must be {_describe(kind)}, got {value!r}{quote}")


def _convert_union(kind: Any, value: Any, where: str, key: str) -> Any:
    members = get_args(kind)
    if value is None and type(None) in members:
        return None
    # An exact match first, so that 1 stays an int in `float | int`.
    ranked = sorted(members, key=lambda member: member is not type(value))
    inner: list[SettingError] = []
    for member in ranked:
        try:
            return _convert(member, value, where, key)
        except SettingError as error:
            if is_dataclass(member) or get_origin(member) in (list, tuple, dict, Literal):
                inner.append(error)
    if isinstance(value, str) and value.lower() in ("none", "null") and type(None) in members:
        return None
    if len(inner) == 1 and isinstance(value, (Mapping, list, tuple)):
        raise inner[0]
    raise SettingError(f"{where}: {key} must be {_describe(kind)}, got {value!r}")


def _convert_sequence(kind: Any, value: Any, where: str, key: str) -> Any:
    make = get_origin(kind) or kind
    inner = get_args(kind)
    if not isinstance(value, (list, tuple)):
        raise SettingError(f"{where}: {key} must be a list, got {value!r}")
    if not inner:
        return make(value)
    if make is list or inner[-1] is Ellipsis:
        inner = (inner[0],) * len(value)
    if len(inner) != len(value):
        raise SettingError(f"{where}: {key} must have {len(inner)} values, got {len(value)}")
    pairs = enumerate(zip(inner, value, strict=True))
    return make(_convert(item, each, where, f"{key}[{i}]") for i, (item, each) in pairs)


def _convert_dict(kind: Any, value: Any, where: str, key: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise SettingError(f"{where}: {key} must be a group of names and values, got {value!r}")
    key_kind, value_kind = get_args(kind) or (Any, Any)
    return {
        _convert(key_kind, name, where, f"the name {name!r} in {key}"): _convert(
            value_kind, each, where, f"{key}.{name}"
        )
        for name, each in value.items()
    }


def _describe(kind: Any) -> str:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(member) for member in get_args(kind))
    if origin is Literal:
        return " or ".join(str(choice) for choice in get_args(kind))
    if (origin or kind) in (list, tuple):
        return "a list"
    if (origin or kind) is dict or is_dataclass(kind):
        return "a group of settings"
    return _NAMES.get(kind) or str(getattr(kind, "__name__", kind))


def to_dict(settings: Any) -> dict[str, Any]:
    """A settings instance as plain YAML/JSON values; `build` reads them back."""
    plain: dict[str, Any] = _plain(asdict(settings))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice instead of keeping the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = getattr(key_node, "value", None)
            if isinstance(key, str) and key != "<<":
                if key in seen:
                    problem = f"the key {key} stands twice"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file's top mapping ({} for an empty file); any fault is a one-line SettingError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SettingError(f"{path}: not a UTF-8 text file") from error
    except FileNotFoundError as error:
        raise SettingError(f"{path}: there is no such file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingError(f"{path}: cannot be read ({reason})") from error
    value = _parse_yaml(text, str(path))
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SettingError(f"{path}: expected 'name: value' lines, got {type(value).__name__}")
    return value


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise SettingError(f"{where}{line}: not valid YAML ({problem})") from error
    except (RecursionError, ValueError) as error:
        raise SettingError(f"{where}: not valid YAML ({error})") from error


def shipped(kind: str) -> dict[str, Path]:
    """Names and files of the YAML files in `configs/<kind>`."""
    import mmdiff.configs

    return {
        path.stem: path
        for folder in mmdiff.configs.__path__
        for path in sorted(Path(folder, kind).glob("*.yaml"))
    }


def preset(kind: str, name: Any) -> dict[str, Any]:
    """The settings of `configs/<kind>/<name>.yaml`; an unknown name is a SettingError."""
    known = shipped(kind)
    if str(name) not in known:
        hint = nearest(str(name), known)
        raise SettingError(f"preset {str(name)!r} is unknown.{hint} Known: {', '.join(known)}")
    return read_yaml(known[str(name)])


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(positional, assignments): `name=value` is an assignment unless a file is called so."""
    positional: list[str] = []
    assignments: list[str] = []
    for argument in arguments:
        is_setting = _ASSIGNMENT.match(argument) and not exists(argument)
        (assignments if is_setting else positional).append(argument)
    return positional, assignments


def exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """['a.b=1', 'c=x'] -> {'a': {'b': 1}, 'c': 'x'}; a later assignment wins."""
    result: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        parts = key.split(".")
        if not equals or not all(part.isidentifier() for part in parts):
            raise SettingError(f"{assignment!r} is not a setting: write name=value")
        group = result
        for part in parts[:-1]:
            group = group.setdefault(part, {})
            if not isinstance(group, dict):
                raise SettingError(f"{assignment}: {part} was already given a value of its own")
        group[parts[-1]] = parse_value(text, key)
    return result


def parse_value(text: str, key: str = "setting") -> Any:
    """Numbers, true, false, null, quoted text and [lists] or {maps} as in YAML; the rest is text.

    Not plain YAML, which would read 12:30 as 750 and drop what follows a '#'.
    """
    simple = {"true": True, "false": False, "null": None, "~": None}
    if text.lower() in simple:
        return simple[text.lower()]
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text) if len(text) <= 4000 else text
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text):
        return float(text)
    if text[:1] in ("[", "{", '"', "'"):
        return _parse_yaml(text, f"the value of {key}")
    return text


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A new mapping: `over` on top of `base`, group by group."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = merge(below, value)
        result[key] = value
    return result
