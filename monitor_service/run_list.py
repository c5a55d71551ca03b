"""The list of runs: filtered, sorted, and page by page without a run twice or left out."""

import base64
import json
from collections.abc import Collection
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, or_, select

from monitor_service import tables
from monitor_service.errors import InvalidMessage, wrong_query
from monitor_service.health import RunStatus
from monitor_service.queries import summary
from monitor_service.views import RunPage, RunSummary

RUNS = tables.runs.c


class Sort(StrEnum):
    """The order of runs; equal ones are younger first."""

    NEWEST = "newest"
    OLDEST = "oldest"
    NAME = "name"
    CHANGED = "changed"


def list_runs(
    connection: Connection,
    *,
    statuses: Collection[RunStatus] = (),
    project: str | None = None,
    search: str | None = None,
    sort: Sort = Sort.NEWEST,
    limit: int = 50,
    cursor: str | None = None,
) -> RunPage:
    """Runs in the order of ``sort``; ``cursor`` goes on where the last page ended.

    Args:
        search: a part of the name, in upper or lower case.

    Raises:
        InvalidMessage: the cursor is none, or one of another order.
    """
    query = _sorted(select(tables.runs), sort).limit(limit + 1)
    if statuses:
        query = query.where(RUNS.status.in_(statuses))
    if project is not None:
        query = query.where(RUNS.project == project)
    if search:
        query = query.where(RUNS.name.icontains(search, autoescape=True))
    if cursor is not None:
        query = query.where(_after(sort, cursor))
    rows = connection.execute(query).all()
    next_cursor = _write(sort, rows[limit - 1]) if len(rows) > limit else None
    return RunPage(items=[RunSummary(**summary(row)) for row in rows[:limit]], next_cursor=next_cursor)


def _sorted(query: Select[Any], sort: Sort) -> Select[Any]:
    if sort is Sort.OLDEST:
        return query.order_by(RUNS.id)
    if sort is Sort.NAME:
        return query.order_by(RUNS.name)
    if sort is Sort.CHANGED:
        return query.order_by(RUNS.status_since.desc(), RUNS.id.desc())
    return query.order_by(RUNS.id.desc())


def _after(sort: Sort, cursor: str) -> ColumnElement[bool]:
    key, run_id = _read(sort, cursor)
    if sort is Sort.OLDEST:
        return RUNS.id > run_id
    if sort is Sort.NAME:
        return RUNS.name > key
    if sort is Sort.CHANGED:
        since = _moment(cursor, key)
        return or_(RUNS.status_since < since, and_(RUNS.status_since == since, RUNS.id < run_id))
    return RUNS.id < run_id


def _write(sort: Sort, row: Row[Any]) -> str:
    key = {Sort.NAME: row.name, Sort.CHANGED: row.status_since.isoformat()}.get(sort, "")
    return base64.urlsafe_b64encode(json.dumps([sort, key, row.id]).encode()).decode()


def _read(sort: Sort, cursor: str) -> tuple[str, int]:
    """The key and the id of the last run that was shown."""
    try:
        told_sort, key, run_id = json.loads(base64.b64decode(cursor.encode(), b"-_", validate=True))
    except (ValueError, TypeError, RecursionError) as error:
        raise _wrong(cursor) from error
    is_sound = isinstance(key, str) and type(run_id) is int and 0 <= run_id <= tables.LARGEST_INTEGER
    if not is_sound or told_sort != sort:
        raise _wrong(cursor)
    return key, run_id


def _moment(cursor: str, key: str) -> datetime:
    try:
        moment = datetime.fromisoformat(key)
        return moment.astimezone()
    except (ValueError, OverflowError) as error:
        raise _wrong(cursor) from error


def _wrong(cursor: str) -> InvalidMessage:
    return wrong_query(
        "cursor", cursor, "send the next_cursor of the page before with the same sort, or none"
    )
