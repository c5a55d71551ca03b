"""Writes the runs' part of ``/metrics`` by hand: a tenth of what the library's objects cost at 500 runs.

Of each run the text of each family is kept from one scrape to the next, and written anew where its values
have changed: most counters stand still most of the time.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from monitor_service.run_numbers import Number, Seen
from monitor_service.run_series import FAMILIES, Family

PREFIX = "trainhealth_"

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_WORDS = {"Infinity": "+Inf", "-Infinity": "-Inf", "inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}

_READS = [family.read for family in FAMILIES]


@dataclass(frozen=True)
class _Written:
    """One run at the last scrape."""

    state: tuple[Any, ...]
    """All that its numbers follow from."""
    labels: str
    found: Sequence[Any]
    """What each family read."""
    texts: Sequence[bytes]
    """The lines of each family."""


class RunWriter:
    """Turns rows of runs into exposition text. Not for several threads at once."""

    def __init__(self) -> None:
        self._written: dict[int, _Written] = {}

    def write(
        self,
        rows: Iterable[Any],
        rollbacks: Mapping[int, Mapping[str, int]],
        pending: Mapping[int, Mapping[str, float]],
        *,
        is_open_metrics: bool,
    ) -> list[bytes]:
        """All series of these runs, family by family, in pieces."""
        self._written = {
            row.id: self._of_run(row, rollbacks.get(row.id, {}), pending.get(row.id, {})) for row in rows
        }
        pieces: list[bytes] = []
        texts = zip(*[written.texts for written in self._written.values()], strict=True)
        for family, lines in zip(FAMILIES, texts, strict=False):  # without a run there are no texts
            if any(lines):
                pieces.append(head(family, is_open_metrics=is_open_metrics).encode())
                pieces += lines
        return pieces

    def _of_run(self, row: Any, rollbacks: Mapping[str, int], pending: Mapping[str, float]) -> _Written:
        state = (*row, rollbacks, pending)
        before = self._written.get(row.id)
        if before is not None and before.state == state:
            return before
        facts = orjson.loads(row.facts)
        seen = Seen(row, facts, facts.get("readings") or {}, rollbacks, pending)
        found = [read(seen) for read in _READS]
        labels = _labels(("project", "run"), f"{row.project}/{row.name}")
        if before is None or before.labels != labels:
            pairs = zip(FAMILIES, found, strict=True)
            return _Written(state, labels, found, [_lines(family, labels, one) for family, one in pairs])
        texts = list(before.texts)
        for place, (new, old) in enumerate(zip(found, before.found, strict=True)):
            if new != old:
                texts[place] = _lines(FAMILIES[place], labels, new)
        return _Written(state, labels, found, texts)


def _lines(family: Family, run: str, found: Any) -> bytes:
    """What a family says about a run; nothing if there is nothing to say."""
    values = family.tell(found)
    if values is None:
        return b""
    name = PREFIX + family.name
    if not isinstance(values, dict):
        return f"{name}{{{run}}} {number(values)}\n".encode()
    begin, names = f"{name}{{{run},", family.labels
    lines = [f"{begin}{_labels(names, key)}}} {number(value)}\n" for key, value in values.items()]
    return "".join(lines).encode()


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
    if type(value) is float and math.isfinite(value):
        return orjson.dumps(value).decode()  # a third of what repr takes
    text = str(value)
    return _WORDS.get(text, text)


def escaped(text: str) -> str:
    """A label's value between its quotes."""
    return text.translate(_ESCAPES)
