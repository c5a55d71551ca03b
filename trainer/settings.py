"""What differs between the settings of a saved run and those that it goes on with."""

from collections.abc import Mapping
from typing import Any


def changes(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """What differs between two nested settings, as ``training.optimizer.lr 0.003 -> 0.001``."""
    found: list[str] = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += changes(old, new, f"{path}{key}.")
        elif old != new:
            found.append(f"{path}{key} {old} -> {new}")
    return found
