"""The course of a loss in the space of a word: drawn from headers, and drawn anew only once it has grown."""

import json
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

from sqlalchemy import Connection, select

from monitor_service import points, tables
from monitor_service.facts import LOSS
from monitor_service.series import Buckets
from monitor_service.views import RunSummary
from monitor_service.web import words

WIDTH, HEIGHT, MARGIN = 112, 26, 2
NUM_BUCKETS = 56
GROWTH = 50
"""A line is drawn anew once the run has grown by this part of its length."""

MAX_KEPT = 2_000


@dataclass(frozen=True)
class Sparkline:
    """Paths of an SVG of ``WIDTH`` x ``HEIGHT``, and what they say in words."""

    line: str
    band: str
    bad: str
    words: str

    width = WIDTH
    height = HEIGHT


class Sparklines:
    """Lines of the runs asked for last, in bounded memory. For any thread."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[tuple[int, int], Sparkline]] = OrderedDict()
        self._lock = Lock()

    def of(self, connection: Connection, runs: Sequence[RunSummary]) -> dict[str, Sparkline]:
        """The line of each run that has one."""
        stale = [one.run for one in runs if one.step is not None and not self._is_fresh(one)]
        found = _read(connection, stale)
        with self._lock:
            for one in runs:
                if one.run in found:
                    self._kept[one.run] = (_age(one), found[one.run])
                if one.run in self._kept:
                    self._kept.move_to_end(one.run)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
            return {one.run: self._kept[one.run][1] for one in runs if one.run in self._kept}

    def _is_fresh(self, run: RunSummary) -> bool:
        kept = self._kept.get(run.run)
        return kept is not None and kept[0] == _age(run)


def _age(run: RunSummary) -> tuple[int, int]:
    """Equal as long as the line need not be drawn again. Lengths on a scale of logarithms: powers of 1.02."""
    return run.attempt, int(math.log(max(run.step or 0, 1)) / math.log1p(1 / GROWTH))


def _read(connection: Connection, names: Sequence[str]) -> dict[str, Sparkline]:
    if not names:
        return {}
    runs = connection.execute(select(tables.runs).where(tables.runs.c.name.in_(names))).all()
    found = {}
    for run in runs:
        if LOSS in json.loads(run.series_names):
            told = points.gather(connection, run, [LOSS], NUM_BUCKETS, points.EFFECTIVE, None, None)
            if len(told[LOSS].step_from):
                found[run.name] = draw(told[LOSS])
    return found


def draw(told: Buckets) -> Sparkline:
    """Lay buckets out; on a logarithmic scale where every value is above zero."""
    low, high = told.min.tolist(), told.max.tolist()
    finite = [value for value in (*low, *high) if math.isfinite(value)]
    scale = math.log if finite and min(finite) > 0 else float
    top, bottom = (scale(max(finite)), scale(min(finite))) if finite else (1.0, 0.0)
    first, last = int(told.step_from[0]), int(told.step_to[-1])

    def x(index: int) -> float:
        middle = (int(told.step_from[index]) + int(told.step_to[index])) / 2
        return MARGIN + (WIDTH - 2 * MARGIN) * (middle - first) / max(last - first, 1)

    def y(value: float) -> float:
        share = (scale(value) - bottom) / (top - bottom) if top > bottom else 0.5
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * share

    there = [index for index, value in enumerate(high) if math.isfinite(value)]
    line = [(x(index), (y(low[index]) + y(high[index])) / 2) for index in there]
    edge = [*((x(i), y(high[i])) for i in there), *((x(i), y(low[i])) for i in reversed(there))]
    bad = [x(index) for index, count in enumerate(told.nonfinite.tolist()) if count]
    return Sparkline(
        line=_path(line),
        band=_path(edge) + "Z" if len(there) > 1 else "",
        bad="".join(f"M{at:.1f} 1v{HEIGHT - 2}" for at in bad),
        words=_in_words(told, finite, len(bad)),
    )


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places) if places else ""


def _in_words(told: Buckets, finite: Sequence[float], bad: int) -> str:
    text = f"Loss now {words.number(float(told.last[-1]))}"
    if finite:
        text += f", between {words.number(min(finite))} and {words.number(max(finite))}"
    return text + (", not finite in places" if bad else "")
