"""Every decoding rule there is, by the setting that names it."""

from __future__ import annotations

from typing import Any

from mmdiff.decoding.cache import CACHES
from mmdiff.decoding.choose import ACCEPTS, ORDERS
from mmdiff.decoding.length import LENGTHS
from mmdiff.decoding.remask import REMASKS
from mmdiff.decoding.speculate import SPECULATES
from mmdiff.decoding.stop import STOPS
from mmdiff.registry import Registry

RULES: dict[str, Registry[Any]] = {
    "accept": ACCEPTS,
    "order": ORDERS,
    "cache": CACHES,
    "remask": REMASKS,
    "length": LENGTHS,
    "speculate": SPECULATES,
    "stop": STOPS,
}


def named(setting: str, name: str) -> dict[str, Any]:
    """The settings that choose a rule, with those it cannot do without (its `needs`)."""
    needs: dict[str, Any] = getattr(RULES[setting].get(name), "needs", {})
    return {**needs, setting: name}
