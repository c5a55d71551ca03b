"""Rows: steps of one attempt with the values of their series, and the batch that each row came in.

A row is known by its step and its origin ``(session, seq)``. Of a step that came twice the batch with the
higher session and seq counts, series by series, whatever came first: so every order of arrival, and every
moment of compaction, gives the same points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Points:
    """Points of one series in the order of steps (of attempts first, where several are kept)."""

    attempt: Ints
    step: Ints
    time: Floats
    value: Floats


@dataclass(frozen=True)
class Values:
    """One series: a value for each row (anything where there is none), and where there is one."""

    value: Floats
    is_there: Bools


@dataclass(frozen=True)
class Rows:
    """Rows in no order until ``merge`` has sorted them; all arrays are equally long."""

    step: Ints
    time: Floats
    sessions: tuple[str, ...]
    session: Ints
    """Index into ``sessions``."""
    seq: Ints
    series: Mapping[str, Values]

    def __len__(self) -> int:
        return len(self.step)

    def take(self, which: Any) -> "Rows":
        """The rows that a mask, a slice or an array of places picks."""
        return Rows(
            self.step[which],
            self.time[which],
            self.sessions,
            self.session[which],
            self.seq[which],
            {name: Values(one.value[which], one.is_there[which]) for name, one in self.series.items()},
        )

    def within(self, from_step: int | None, to_step: int | None) -> "Rows":
        """Rows from one step to another, both included."""
        kept = np.ones(len(self), bool)
        if from_step is not None:
            kept &= self.step >= from_step
        if to_step is not None:
            kept &= self.step <= to_step
        return self if kept.all() else self.take(kept)

    def points(self, name: str, attempt: int) -> Points:
        """The points of one series, which may be none."""
        if name not in self.series:
            return no_points()
        one = self.series[name]
        step, time, value = self.step, self.time, one.value
        if not one.is_there.all():
            step, time, value = step[one.is_there], time[one.is_there], value[one.is_there]
        return Points(np.full(len(step), attempt), step, time, value)


def no_points() -> Points:
    nothing, empty = np.empty(0, np.int64), np.empty(0)
    return Points(nothing, nothing, empty, empty)


def chain(parts: Sequence[Points]) -> Points:
    """Parts of one series that follow each other, as one."""
    if not parts:
        return no_points()
    if len(parts) == 1:
        return parts[0]
    return Points(
        np.concatenate([part.attempt for part in parts]),
        np.concatenate([part.step for part in parts]),
        np.concatenate([part.time for part in parts]),
        np.concatenate([part.value for part in parts]),
    )


def merge(parts: Sequence[Rows]) -> Rows:
    """Rows of one attempt as one, sorted by step and origin; values that a later origin replaces are gone.

    So are rows without a value.
    """
    parts = sorted((part for part in parts if len(part)), key=lambda part: int(part.step[0]))
    rows = parts[0] if len(parts) == 1 else _put_together(parts)
    if not np.all(rows.step[1:] > rows.step[:-1]):
        rows = _without_replaced(rows.take(np.lexsort((rows.seq, rows.session, rows.step))))
    return _without_empty(rows)


def split(rows: Rows, size: int) -> list[Rows]:
    """Sorted rows in pieces of about ``size``; rows of one step stay together."""
    num_pieces = max(1, round(len(rows) / size))
    cuts = [len(rows) * piece // num_pieces for piece in range(1, num_pieces)]
    edges = sorted({int(np.searchsorted(rows.step, rows.step[cut])) for cut in cuts} | {0, len(rows)})
    return [rows.take(slice(begin, end)) for begin, end in pairwise(edges)]


def _put_together(parts: Sequence[Rows]) -> Rows:
    sessions = tuple(sorted({session for part in parts for session in part.sessions}))
    place = {session: number for number, session in enumerate(sessions)}
    names = sorted({name for part in parts for name in part.series})
    return Rows(
        _joined([part.step for part in parts], np.int64),
        _joined([part.time for part in parts], np.float64),
        sessions,
        _joined(
            [np.array([place[s] for s in part.sessions], np.int64)[part.session] for part in parts], np.int64
        ),
        _joined([part.seq for part in parts], np.int64),
        {name: _joined_values(parts, name) for name in names},
    )


def _joined(arrays: Sequence[NDArray[Any]], kind: Any) -> NDArray[Any]:
    return np.concatenate([np.empty(0, kind), *arrays])


def _joined_values(parts: Sequence[Rows], name: str) -> Values:
    found = [part.series.get(name) or _none(len(part)) for part in parts]
    return Values(
        _joined([one.value for one in found], np.float64), _joined([one.is_there for one in found], np.bool_)
    )


def _none(count: int) -> Values:
    return Values(np.zeros(count), np.zeros(count, bool))


def _without_replaced(rows: Rows) -> Rows:
    """Each step keeps, of each series, the value of its last row."""
    series = {
        name: Values(one.value, _last_there(rows.step, one.is_there)) for name, one in rows.series.items()
    }
    return Rows(rows.step, rows.time, rows.sessions, rows.session, rows.seq, series)


def _without_empty(rows: Rows) -> Rows:
    holds = np.zeros(len(rows), bool)
    for one in rows.series.values():
        holds |= one.is_there
    return rows if holds.all() else rows.take(holds)


def _last_there(step: Ints, is_there: Bools) -> Bools:
    places = np.flatnonzero(is_there)
    is_last = np.ones(len(places), bool)
    is_last[:-1] = step[places[1:]] != step[places[:-1]]
    kept = np.zeros(len(step), bool)
    kept[places[is_last]] = True
    return kept
