"""Incidents of a run: each told again as more is known, and the last telling counts."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field
from sqlalchemy import Connection, Row, select

from monitor_service import tables
from monitor_service.queries import run_row
from shared.base import Message, Moment
from shared.events import Incident


class IncidentView(Message):
    """One fault from onset to outcome, as it was told last."""

    incident: Incident
    attempt: int
    first_told: Moment
    last_told: Moment
    tellings: int = Field(description="How often it was told.")


class IncidentCost(Message):
    """What all incidents of a run took."""

    incidents: int
    open: int
    steps_lost: int
    seconds_lost: float


class IncidentPage(Message):
    """Incidents of a run, the youngest first."""

    items: list[IncidentView]
    cost: IncidentCost


def incidents(connection: Connection, run: str, *, skip: int = 0, limit: int | None = None) -> IncidentPage:
    """Incidents of the run, all or ``limit`` of them after the youngest ``skip``; the cost is that of all.

    Batches may arrive late, so the last telling is that of the latest time.
    """
    told = sorted(_tellings(connection, run).values(), key=lambda rows: rows[0].time, reverse=True)
    end = None if limit is None else skip + limit
    cost = _cost([json.loads(rows[-1].data) for rows in told])
    return IncidentPage(items=[_view(rows) for rows in told[skip:end]], cost=cost)


def incident_of(connection: Connection, run: str, name: str) -> IncidentView | None:
    """One incident, or None if the run tells of none of this name."""
    rows = _tellings(connection, run).get(name)
    return None if rows is None else _view(rows)


def _tellings(connection: Connection, run: str) -> dict[str, list[Row[Any, Any, Any]]]:
    """What was told of each incident, in the order of time."""
    known = tables.events.c
    rows = connection.execute(
        select(known.attempt, known.time, known.data)
        .where(known.run_id == run_row(connection, run).id, known.type == "incident")
        .order_by(known.time, known.id)
    )
    told: dict[str, list[Row[Any, Any, Any]]] = {}
    for row in rows:
        told.setdefault(json.loads(row.data)["incident"], []).append(row)
    return told


def _view(tellings: Sequence[Row[Any, Any, Any]]) -> IncidentView:
    last = tellings[-1]
    return IncidentView(
        incident=Incident.model_validate_json(last.data),
        attempt=last.attempt,
        first_told=tellings[0].time,
        last_told=last.time,
        tellings=len(tellings),
    )


def _cost(found: Sequence[Mapping[str, Any]]) -> IncidentCost:
    return IncidentCost(
        incidents=len(found),
        open=sum(one["outcome"] == "open" for one in found),
        steps_lost=sum(one["steps_lost"] for one in found),
        seconds_lost=sum(float(one["seconds_lost"]) for one in found),  # in JSON NaN is a text
    )
