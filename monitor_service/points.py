"""Reads the points of stored series, every one or gathered in ranges of steps."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, Row, bindparam, select

from monitor_service import series, tables
from monitor_service.blocks import HEADER, Headers
from monitor_service.errors import NotFound, wrong_query
from monitor_service.prepared import Prepared
from monitor_service.rows import Bools, Ints, Points, Rows, chain, merge
from monitor_service.series import Buckets, Stretch
from monitor_service.stored import Kept, Stored, ToldBy

EFFECTIVE, ALL = "effective", "all"

_KNOWN = tables.attempts.c
_STARTS = Prepared(
    select(_KNOWN.attempt, _KNOWN.start_step)
    .where(_KNOWN.run_id == bindparam("run"))
    .order_by(_KNOWN.attempt)
)


def read(
    connection: Connection,
    run: Row[Any],
    names: Sequence[str],
    attempt: str = EFFECTIVE,
    from_step: int | None = None,
    to_step: int | None = None,
) -> dict[str, Points]:
    """Points of each series in ``names``, sorted by step (by attempt first, with ``all``).

    Of a stretch whose points are no longer kept (only buckets are) there are none.

    Args:
        attempt: ``effective`` (without abandoned steps), ``all``, or one attempt's number.
        from_step, to_step: both included.

    Raises:
        NotFound: the run never sent one of the series.
        InvalidMessage: ``attempt`` is something else.
    """
    parts: dict[str, list[Points]] = {name: [] for name in names}
    for stored in _stored(connection, run, names, attempt, from_step, to_step):
        kept = stored.kept()
        every = np.ones(len(kept.id), bool)
        rows = merge([*stored.load(kept, every), *stored.batches()]).within(stored.first, stored.last)
        for name in names:
            parts[name].append(rows.points(name, stored.attempt))
    return {name: chain(some) for name, some in parts.items()}


def gather(
    connection: Connection,
    run: Row[Any],
    names: Sequence[str],
    buckets: int,
    attempt: str = EFFECTIVE,
    from_step: int | None = None,
    to_step: int | None = None,
) -> dict[str, Buckets]:
    """Each series as at most ``buckets`` ranges of steps; arguments and errors as of ``read``.

    Blocks that fit into one range are told by their headers; only the others are unpacked. One stretch at a
    time, so not with ``all``.
    """
    assert attempt != ALL, "refused where it is asked"
    outline = Outline.read(connection, run, names, attempt, from_step, to_step)
    told = outline.told(_width(outline.ends, buckets))
    return {name: series.gather(headers, single, buckets) for name, (headers, single) in told.items()}


def _stored(
    connection: Connection,
    run: Row[Any],
    names: Sequence[str],
    attempt: str,
    from_step: int | None,
    to_step: int | None,
) -> list[Stored]:
    """What to read of which attempt, cut to the range asked for, in the order of steps (or of attempts)."""
    _refuse_unknown(run, names)
    number = _number(attempt)
    starts = [(row.attempt, row.start_step) for row in _STARTS.all(connection, run=run.id)]
    if attempt == EFFECTIVE:
        found = series.effective_stretches(starts)
    else:
        found = [Stretch(one, 0, None) for one, _ in starts if number in (None, one)]
    cut = [(one.attempt, *_ends(one, from_step, to_step)) for one in found]
    return [Stored.of(connection, run, names, *span) for span in cut if span[1] <= span[2]]


def _refuse_unknown(run: Row[Any], names: Sequence[str]) -> None:
    known = json.loads(run.series_names)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise NotFound.series(run.name, unknown, known)


def _number(attempt: str) -> int | None:
    if attempt in (EFFECTIVE, ALL):
        return None
    if not (attempt.isascii() and attempt.isdigit() and len(attempt) <= 18):
        raise wrong_query("attempt", attempt, "say 'effective', 'all' or the number of an attempt")
    return int(attempt)


def _ends(stretch: Stretch, from_step: int | None, to_step: int | None) -> tuple[int, int]:
    lasts = [step for step in (stretch.last, to_step) if step is not None]
    return max(stretch.first, from_step or 0), min(lasts, default=tables.LARGEST_INTEGER)


@dataclass(frozen=True)
class _Look:
    """A stretch before it is decided which of its blocks are unpacked."""

    stored: Stored
    kept: Kept
    tail: Rows
    told_by: Mapping[str, ToldBy]

    @classmethod
    def at(cls, stored: Stored) -> "_Look":
        told_by = {name: stored.told_by(name) for name in stored.names}
        return cls(stored, stored.kept(), merge(stored.batches()), told_by)

    def ends(self, name: str) -> tuple[int, int] | None:
        """First and last step of a series; a block that the stretch cuts counts up to the cut."""
        headers, steps = self.told_by[name].headers, self.tail.points(name, 0).step
        firsts = np.concatenate([headers["first_step"], steps[:1]])
        lasts = np.concatenate([headers["last_step"], steps[-1:]])
        if not len(firsts):
            return None
        return max(int(firsts.min()), self.stored.first), min(int(lasts.max()), self.stored.last)

    def whole(self, name: str, without: Ints) -> Headers:
        """The headers of a series' chunks, but for those of some blocks."""
        told_by = self.told_by[name]
        return told_by.headers[~np.isin(told_by.block, without)]

    def unpacked(self, width: int) -> tuple[Rows, Ints]:
        """The rows that are told one by one, and the blocks that some of them are from."""
        wanted = self._must_unpack(width)
        rows = merge([*self.stored.load(self.kept, wanted), self.tail])
        return rows.within(self.stored.first, self.stored.last), self.kept.id[wanted]

    def _must_unpack(self, width: int) -> Bools:
        """Blocks that are wider than a range, cut by the stretch, or mixed with batches that came late."""
        first, last, stored = self.kept.first_step, self.kept.last_step, self.stored
        is_cut = (first < stored.first) | (last > stored.last)
        is_mixed = np.searchsorted(self.tail.step, first) < np.searchsorted(self.tail.step, last, "right")
        found: Bools = (last - first >= width) | is_cut | is_mixed
        return found


@dataclass(frozen=True)
class Outline:
    """What is stored of some series of one run, before it is decided which blocks are unpacked."""

    names: Sequence[str]
    _looks: Sequence[_Look]

    @classmethod
    def read(
        cls,
        connection: Connection,
        run: Row[Any],
        names: Sequence[str],
        attempt: str = EFFECTIVE,
        from_step: int | None = None,
        to_step: int | None = None,
    ) -> "Outline":
        """Headers, and batches that are not compacted yet; arguments and errors as of ``read`` above."""
        stored = _stored(connection, run, names, attempt, from_step, to_step)
        return cls(names, [_Look.at(one) for one in stored])

    @property
    def ends(self) -> tuple[int, int] | None:
        """First and last step of all the series together."""
        found = [look.ends(name) for look in self._looks for name in self.names]
        known = [one for one in found if one is not None]
        return (min(first for first, _ in known), max(last for _, last in known)) if known else None

    def told(self, width: int) -> dict[str, tuple[Headers, Points]]:
        """Of each series: the headers of blocks of at most ``width`` steps, and the points of the others."""
        headers: dict[str, list[Headers]] = {name: [np.empty(0, HEADER)] for name in self.names}
        single: dict[str, list[Points]] = {name: [] for name in self.names}
        for look in self._looks:
            rows, ids = look.unpacked(width)
            for name in self.names:
                headers[name].append(look.whole(name, ids))
                single[name].append(rows.points(name, look.stored.attempt))
        return {name: (np.concatenate(headers[name]), chain(single[name])) for name in self.names}


def _width(ends: tuple[int, int] | None, buckets: int) -> int:
    """Steps in a range, over all that was asked for."""
    return 1 if ends is None else -(-(ends[1] - ends[0] + 1) // buckets)
