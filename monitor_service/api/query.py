"""What pages and programs ask: runs, health, series, events, checkpoints."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import AwareDatetime

from monitor_service import queries
from monitor_service.api.answers import answer, answer_if_changed
from monitor_service.api.dependencies import ConnectionDep, Monitor, MonitorDep
from monitor_service.api.ingest import RunName
from monitor_service.api.paths import API
from monitor_service.api.permissions import PrincipalDep, needs
from monitor_service.health import RunStatus
from monitor_service.incidents import IncidentPage
from monitor_service.incidents import incidents as incidents_of
from monitor_service.run_list import Sort, list_runs
from monitor_service.span import Span
from monitor_service.tables import LARGEST_INTEGER
from monitor_service.tokens import Scope
from monitor_service.views import (
    CheckpointPage,
    EventPage,
    HealthView,
    RunDetail,
    RunPage,
    SessionPage,
)
from shared.events import Severity

router = APIRouter(prefix=API, tags=["query"], dependencies=[needs(Scope.READ)])


@router.get("/runs", response_model=RunPage)
def runs(
    request: Request,
    connection: ConnectionDep,
    principal: PrincipalDep,
    status: Annotated[list[RunStatus], Query(default_factory=list)],
    project: Annotated[str | None, Query(max_length=100)] = None,
    search: Annotated[str | None, Query(max_length=100, description="A part of the name.")] = None,
    sort: Sort = Sort.NEWEST,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=500)] = None,
) -> Response:
    """Runs, filtered and sorted, page by page."""
    page = list_runs(
        connection,
        statuses=status,
        project=project if principal.project is None else principal.project,
        search=search,
        sort=sort,
        limit=limit,
        cursor=cursor,
    )
    return answer_if_changed(request, page)


@router.get("/runs/{run}", response_model=RunDetail)
def run_detail(run: RunName, request: Request, connection: ConnectionDep) -> Response:
    """All about a run except its long lists."""
    return answer_if_changed(request, queries.run_detail(connection, run))


@router.get("/runs/{run}/health", response_model=HealthView)
async def health(run: RunName, request: Request, monitor: MonitorDep) -> Response:
    """How a run is, since when, why, and what trouble has cost it so far."""
    return answer_if_changed(request, await run_in_threadpool(_health, monitor, run))


def _health(monitor: Monitor, run: str) -> HealthView:
    with monitor.store.reading() as connection:
        return queries.health(connection, run)


@router.get("/runs/{run}/events", response_model=EventPage)
def events(
    run: RunName,
    connection: ConnectionDep,
    type: Annotated[list[str], Query(default_factory=list)],
    severity: Annotated[list[Severity], Query(default_factory=list)],
    from_step: Annotated[int | None, Query(ge=0, le=LARGEST_INTEGER)] = None,
    to_step: Annotated[int | None, Query(ge=0, le=LARGEST_INTEGER)] = None,
    since: Annotated[AwareDatetime | None, Query(description="By the trainer's clock.")] = None,
    until: AwareDatetime | None = None,
    after: Annotated[int, Query(ge=0, le=LARGEST_INTEGER)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    newest_first: bool = False,
) -> Response:
    """Events in the order of arrival, from the one after ``after`` on; all ends are included."""
    page = queries.events(
        connection,
        run,
        types=type,
        severities=severity,
        span=Span(from_step, to_step, since, until),
        after=after,
        limit=limit,
        newest_first=newest_first,
    )
    return answer(page)


@router.get("/runs/{run}/checkpoints", response_model=CheckpointPage)
def checkpoints(run: RunName, connection: ConnectionDep) -> Response:
    """Checkpoints with their latest state."""
    return answer(queries.checkpoints(connection, run))


@router.get("/runs/{run}/sessions", response_model=SessionPage)
def sessions(run: RunName, connection: ConnectionDep) -> Response:
    """Which batches came from each life of the trainer, and which are missing."""
    return answer(queries.sessions(connection, run))


@router.get("/runs/{run}/findings", response_model=EventPage)
def findings(
    run: RunName,
    connection: ConnectionDep,
    severity: Annotated[list[Severity], Query(default_factory=list)],
    after: Annotated[int, Query(ge=0, le=LARGEST_INTEGER)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    newest_first: bool = False,
) -> Response:
    """What the guards saw, in the order of arrival: the events of that type."""
    page = queries.events(
        connection,
        run,
        types=["finding"],
        severities=severity,
        after=after,
        limit=limit,
        newest_first=newest_first,
    )
    return answer(page)


@router.get("/runs/{run}/incidents", response_model=IncidentPage)
def incidents(run: RunName, connection: ConnectionDep) -> Response:
    """Faults from onset to outcome, each as it was told last, and what they cost."""
    return answer(incidents_of(connection, run))
