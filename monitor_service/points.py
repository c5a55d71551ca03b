"""Reads the points of stored series: which blobs are needed, and which of their steps are in force."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, select

from monitor_service import series, tables
from monitor_service.errors import NotFound, wrong_query
from monitor_service.series import Points, Stretch

EFFECTIVE, ALL = "effective", "all"


def read(
    connection: Connection,
    run: Row[Any],
    names: Sequence[str],
    attempt: str,
    from_step: int | None,
    to_step: int | None,
) -> dict[str, Points]:
    """Points of each series in ``names``, sorted by step (by attempt first, with ``all``).

    Args:
        attempt: ``effective`` (without abandoned steps), ``all``, or one attempt's number.
        from_step, to_step: both included.

    Raises:
        NotFound: the run never sent one of the series.
        InvalidMessage: ``attempt`` is something else.
    """
    _refuse_unknown(run, names)
    number = _number(attempt)
    stretches = _stretches(connection, run.id) if attempt == EFFECTIVE else None
    if stretches is not None:
        stretches = [stretch for stretch in stretches if _touches(stretch, from_step, to_step)]
    parts: dict[str, list[Points]] = {name: [] for name in names}
    for row in connection.execute(_blobs(run.id, number, from_step, to_step)):
        if stretches is None or any(_overlaps(row, stretch) for stretch in stretches):
            for name, points in series.unpack(row.payload, row.attempt, names).items():
                parts[name].append(points)
    found = {name: series.within(series.join(some), from_step, to_step) for name, some in parts.items()}
    if stretches is None:
        return found
    return {name: series.effective(points, stretches) for name, points in found.items()}


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


def _stretches(connection: Connection, run_id: int) -> list[Stretch]:
    known = tables.attempts.c
    rows = connection.execute(select(known.attempt, known.start_step).where(known.run_id == run_id))
    return series.effective_stretches((row.attempt, row.start_step) for row in rows)


def _blobs(run_id: int, attempt: int | None, from_step: int | None, to_step: int | None) -> Any:
    """Blobs in the order of sending: of a step that was sent twice the later one counts."""
    known = tables.batches.c
    query = select(known.attempt, known.first_step, known.last_step, known.payload).where(
        known.run_id == run_id, known.payload.is_not(None)
    )
    if attempt is not None:
        query = query.where(known.attempt == attempt)
    if from_step is not None:
        query = query.where(known.last_step >= from_step)
    if to_step is not None:
        query = query.where(known.first_step <= to_step)
    return query.order_by(known.attempt, known.session, known.seq)


def _touches(stretch: Stretch, from_step: int | None, to_step: int | None) -> bool:
    ends_before = from_step is not None and stretch.last is not None and stretch.last < from_step
    begins_after = to_step is not None and stretch.first > to_step
    return not ends_before and not begins_after


def _overlaps(row: Row[Any], stretch: Stretch) -> bool:
    return row.attempt == stretch.attempt and _touches(stretch, row.first_step, row.last_step)
