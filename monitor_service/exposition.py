"""Writes the runs' part of ``/metrics`` by hand: a tenth of what the library's objects cost at 500 runs.

Of each run the text of each family is kept from one scrape to the next, and written anew where its values
have changed: most counters stand still most of the time.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from pydantic_core import from_json

from monitor_service.run_series import FAMILIES, Family, Number, Seen

PREFIX = "trainhealth_"

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_WORDS = {"Infinity": "+Inf", "-Infinity": "-Inf", "inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}

Written = list[tuple[Any, str]]
"""For each family what was found and its lines."""

_NEW: Any = object()
"""Equal to nothing that is found."""


class RunWriter:
    """Turns rows of runs into exposition text. Not for several threads at once."""

    def __init__(self) -> None:
        self._written: dict[int, tuple[str, Any, Written]] = {}

    def write(
        self,
        rows: Iterable[Any],
        rollbacks: Mapping[int, Mapping[str, int]],
        pending: Mapping[int, Mapping[str, float]],
        *,
        is_open_metrics: bool,
    ) -> str:
        """All series of these runs, family by family."""
        kept = {row.id: self._of_run(row, rollbacks.get(row.id, {}), pending.get(row.id, {})) for row in rows}
        self._written = kept
        texts = [[text for _, text in written] for _, _, written in kept.values()]
        heads = [head(family, is_open_metrics=is_open_metrics) for family in FAMILIES]
        columns = zip(*texts, strict=True) if texts else [()] * len(FAMILIES)
        return "".join(
            [f"{one}{''.join(lines)}" for one, lines in zip(heads, columns, strict=True) if any(lines)]
        )

    def _of_run(
        self, row: Any, rollbacks: Mapping[str, int], pending: Mapping[str, float]
    ) -> tuple[str, Any, Written]:
        labels = f'project="{escaped(row.project)}",run="{escaped(row.name)}"'
        state = (tuple(row), rollbacks, pending)
        before = self._written.get(row.id)
        if before is not None and before[:2] == (labels, state):
            return before
        facts = from_json(row.facts)
        seen = Seen(row, facts, facts.get("readings") or {}, rollbacks, pending)
        old = before[2] if before is not None and before[0] == labels else [(_NEW, "")] * len(FAMILIES)
        pairs = zip(FAMILIES, old, strict=True)
        return labels, state, [_lines(family, labels, seen, one) for family, one in pairs]


def _lines(family: Family, run: str, seen: Seen, before: tuple[Any, str]) -> tuple[Any, str]:
    found = family.read(seen)
    if found == before[0]:
        return before
    values = family.tell(found)
    if values is None:
        return found, ""
    name = PREFIX + family.name
    if not isinstance(values, dict):
        return found, f"{name}{{{run}}} {number(values)}\n"
    begin, names = f"{name}{{{run},", family.labels
    lines = [f"{begin}{_labels(names, key)}}} {number(value)}\n" for key, value in values.items()]
    return found, "".join(lines)


@lru_cache(maxsize=4096)
def _labels(names: tuple[str, ...], key: str) -> str:
    values = key.rsplit("/", len(names) - 1) if len(names) > 1 else [key]
    return ",".join([f'{name}="{escaped(value)}"' for name, value in zip(names, values, strict=True)])


def head(family: Family, *, is_open_metrics: bool) -> str:
    """The two lines before a family. OpenMetrics names a counter without its ending."""
    name = PREFIX + (family.name.removesuffix("_total") if is_open_metrics else family.name)
    return f"# HELP {name} {family.what}\n# TYPE {name} {family.kind}\n"


def number(value: Number) -> str:
    """As Prometheus reads it; texts are the words of the wire."""
    if type(value) is int:
        return str(value)
    text = value if isinstance(value, str) else repr(value)
    return _WORDS.get(text, text)


def escaped(text: str) -> str:
    """A label's value between its quotes."""
    return text.translate(_ESCAPES)
