"""What pages and programs ask: runs, health, series, events, checkpoints."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from monitor_service import queries
from monitor_service.api.answers import answer, answer_if_changed
from monitor_service.api.dependencies import ConnectionDep
from monitor_service.api.ingest import RunName
from monitor_service.api.permissions import PrincipalDep, needs
from monitor_service.health import RunStatus
from monitor_service.tables import LARGEST_INTEGER
from monitor_service.tokens import Scope
from monitor_service.views import (
    BucketSeries,
    CheckpointPage,
    EventPage,
    HealthView,
    RawSeries,
    RunDetail,
    RunPage,
)
from shared.events import Severity

router = APIRouter(tags=["query"], dependencies=[needs(Scope.READ)])

Whole = Annotated[int | None, Query(ge=0, le=LARGEST_INTEGER)]


@router.get("/runs", response_model=RunPage)
def list_runs(
    connection: ConnectionDep,
    principal: PrincipalDep,
    status: Annotated[list[RunStatus], Query(default_factory=list)],
    project: str | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=100)] = None,
) -> Response:
    """Runs, youngest first."""
    if principal.project is not None:
        project = principal.project
    return answer(queries.list_runs(connection, statuses=status, project=project, limit=limit, cursor=cursor))


@router.get("/runs/{run}", response_model=RunDetail)
def run_detail(run: RunName, connection: ConnectionDep) -> Response:
    """All about a run except its long lists."""
    return answer(queries.run_detail(connection, run))


@router.get("/runs/{run}/health", response_model=HealthView)
def health(run: RunName, request: Request, connection: ConnectionDep) -> Response:
    """How a run is, since when, why, and what trouble has cost it so far."""
    return answer_if_changed(request, queries.health(connection, run))


@router.get("/runs/{run}/series", response_model=RawSeries | BucketSeries)
def series(
    run: RunName,
    connection: ConnectionDep,
    name: Annotated[list[str], Query(min_length=1, max_length=50)],
    attempt: Annotated[str, Query(description="effective, all, or the number of one")] = "effective",
    from_step: Whole = None,
    to_step: Whole = None,
    buckets: Annotated[int | None, Query(ge=1, le=10_000)] = None,
) -> Response:
    """Points of some series, every one or gathered in ``buckets`` with min, max, last and counts."""
    if buckets is None:
        return answer(
            queries.raw_series(connection, run, name, attempt=attempt, from_step=from_step, to_step=to_step)
        )
    return answer(
        queries.bucket_series(
            connection, run, name, buckets=buckets, attempt=attempt, from_step=from_step, to_step=to_step
        )
    )


@router.get("/runs/{run}/events", response_model=EventPage)
def events(
    run: RunName,
    connection: ConnectionDep,
    type: Annotated[list[str], Query(default_factory=list)],
    severity: Annotated[list[Severity], Query(default_factory=list)],
    after: Annotated[int, Query(ge=0, le=LARGEST_INTEGER)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    newest_first: bool = False,
) -> Response:
    """Events in the order of arrival, from the one after ``after`` on."""
    page = queries.events(
        connection, run, types=type, severities=severity, after=after, limit=limit, newest_first=newest_first
    )
    return answer(page)


@router.get("/runs/{run}/checkpoints", response_model=CheckpointPage)
def checkpoints(run: RunName, connection: ConnectionDep) -> Response:
    """Checkpoints with their latest state."""
    return answer(queries.checkpoints(connection, run))
