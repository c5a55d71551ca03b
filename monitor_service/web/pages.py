"""The pages' routes: all runs, one run, one incident."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import HTMLResponse

from monitor_service import queries
from monitor_service.access import Principal, refuse_foreign
from monitor_service.api.dependencies import ConnectionDep
from monitor_service.api.permissions import PrincipalDep, needs
from monitor_service.errors import Forbidden, NotFound, wrong_query
from monitor_service.health import RunStatus
from monitor_service.run_list import Sort
from monitor_service.tables import LARGEST_INTEGER
from monitor_service.tokens import Scope
from monitor_service.web.compare_page import MOST_RUNS, ComparePageView
from monitor_service.web.fleet import FleetView, Wish
from monitor_service.web.incident_page import IncidentPageView, IncidentsPageView
from monitor_service.web.run_page import RunPageView
from monitor_service.web.shell import page
from monitor_service.web.sparklines import Sparklines
from shared.base import Name

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


def get_sparklines(request: Request) -> Sparklines:
    """Those of this app, which remember what they drew."""
    found: Sparklines = request.app.state.sparklines
    return found


@router.get("/", dependencies=[needs(Scope.READ)])
def fleet(
    request: Request,
    connection: ConnectionDep,
    principal: PrincipalDep,
    sparklines: Annotated[Sparklines, Depends(get_sparklines)],
    status: Annotated[list[RunStatus], Query(default_factory=list)],
    search: Annotated[str, Query(max_length=100)] = "",
    sort: Sort = Sort.NEWEST,
    cursor: Annotated[str | None, Query(max_length=500)] = None,
) -> Response:
    """Runs that fit the wish, in its order."""
    wish = Wish(list(dict.fromkeys(status)), search.strip(), sort, cursor)
    view = FleetView.read(connection, sparklines, wish, principal.project)
    return page(request, "fleet.html", {"fleet": view})


@router.get("/compare")
def compare(
    request: Request,
    connection: ConnectionDep,
    principal: PrincipalDep,
    run: Annotated[list[Name], Query(default_factory=list)],
) -> Response:
    """Some runs side by side; says how many it takes where there are too few or too many."""
    names = list(dict.fromkeys(run))
    if not 2 <= len(names) <= MOST_RUNS:
        raise wrong_query("run", ", ".join(names), f"choose two to {MOST_RUNS} runs on the page of all runs")
    for name in names:
        try:
            _admit(connection, principal, name)
            queries.run_row(connection, name)
        except NotFound:
            return _no_such_run(request, name)
    return page(request, "compare.html", {"page": ComparePageView.read(connection, names)})


@router.get("/runs/{run}")
def one_run(request: Request, connection: ConnectionDep, principal: PrincipalDep, run: str) -> Response:
    """All about one run; 404 with what to do if there is none of this name, or it is another project's."""
    try:
        _admit(connection, principal, run)
        view = RunPageView.read(connection, run, may_order=principal.may(Scope.CONTROL))
    except NotFound:
        return _no_such_run(request, run)
    return page(request, "run.html", {"page": view})


@router.get("/runs/{run}/incidents")
def all_incidents(
    request: Request,
    connection: ConnectionDep,
    principal: PrincipalDep,
    run: str,
    skip: Annotated[int, Query(ge=0, le=LARGEST_INTEGER)] = 0,
) -> Response:
    """The incidents of a run, some at a time."""
    try:
        _admit(connection, principal, run)
        view = IncidentsPageView.read(connection, run, skip)
    except NotFound:
        return _no_such_run(request, run)
    return page(request, "incidents.html", {"page": view})


@router.get("/runs/{run}/incidents/{incident}")
def one_incident(
    request: Request, connection: ConnectionDep, principal: PrincipalDep, run: str, incident: str
) -> Response:
    """One fault, from its onset to its outcome."""
    try:
        _admit(connection, principal, run)
        view = IncidentPageView.read(connection, run, incident)
    except NotFound:
        return _no_such_run(request, run)
    if view is None:
        return _not_here(request, "No such incident", f"Run {run} tells of no incident “{incident}”.")
    return page(request, "incident.html", {"page": view})


def _admit(connection: ConnectionDep, principal: Principal, run: str) -> None:
    if not principal.may(Scope.READ):
        raise Forbidden(f"token {principal.name!r} may not read")
    refuse_foreign(connection, principal, run)


def _no_such_run(request: Request, run: str) -> Response:
    return _not_here(request, "No such run", f"This monitor knows no run called “{run}”.")


def _not_here(request: Request, heading: str, reason: str) -> Response:
    context = {
        "heading": heading,
        "reason": reason,
        "remedy": (
            "Check the name in the address. If the trainer has only just started, it may not have reached "
            "this monitor yet: load the page again in a moment."
        ),
    }
    return page(request, "error.html", context, status_code=404)
