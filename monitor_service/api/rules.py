"""Rules: what the monitor looks out for and does by itself, for a project or a run."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from sqlalchemy import Connection

from monitor_service import rulebook, runs
from monitor_service.access import Principal
from monitor_service.api.answers import answer
from monitor_service.api.body import read_message
from monitor_service.api.dependencies import ConnectionDep, Monitor, MonitorDep, SettingsDep
from monitor_service.api.ingest import RunName
from monitor_service.api.openapi import body_of
from monitor_service.api.paths import API
from monitor_service.api.permissions import PrincipalDep, needs
from monitor_service.errors import Forbidden
from monitor_service.rulebook import RulesRequest, RulesView
from monitor_service.tokens import Scope
from shared.base import Name

router = APIRouter(prefix=API, tags=["rules"])
ProjectName = Annotated[Name, Path(description="The project's name.")]


@router.get("/runs/{run}/rules", response_model=RulesView, dependencies=[needs(Scope.READ)])
def of_run(run: RunName, connection: ConnectionDep, settings: SettingsDep) -> Response:
    """Which rules hold for a run, where they come from, and who chose them."""
    return answer(rulebook.of_run(connection, run, settings))


@router.get("/projects/{project}/rules", response_model=RulesView, dependencies=[needs(Scope.READ)])
def of_project(
    project: ProjectName, connection: ConnectionDep, settings: SettingsDep, principal: PrincipalDep
) -> Response:
    """The same for all runs of a project."""
    _refuse_other(principal, project)
    return answer(rulebook.of_project(connection, project, settings))


@router.put(
    "/runs/{run}/rules",
    response_model=RulesView,
    openapi_extra=body_of(RulesRequest),
    dependencies=[needs(Scope.CONTROL)],
)
async def choose_for_run(
    run: RunName, request: Request, monitor: MonitorDep, principal: PrincipalDep
) -> Response:
    """Choose all that is to differ for a run. The newest choice holds, each stays on record."""
    wish = await _read(request, monitor, principal)

    def write(connection: Connection, now: datetime) -> RulesView:
        rulebook.choose_for_run(connection, runs.hold(connection, run), wish, now)
        runs.look(connection, run, now, monitor.settings, monitor.store.recall)
        return rulebook.of_run(connection, run, monitor.settings)

    now = monitor.clock()
    return answer(await monitor.store.commit(lambda connection: write(connection, now)))


@router.put(
    "/projects/{project}/rules",
    response_model=RulesView,
    openapi_extra=body_of(RulesRequest),
    dependencies=[needs(Scope.CONTROL)],
)
async def choose_for_project(
    project: ProjectName, request: Request, monitor: MonitorDep, principal: PrincipalDep
) -> Response:
    """The same for all runs of a project, those to come among them."""
    _refuse_other(principal, project)
    wish = await _read(request, monitor, principal)

    def write(connection: Connection, now: datetime) -> RulesView:
        rulebook.choose_for_project(connection, project, wish, now)
        return rulebook.of_project(connection, project, monitor.settings)

    now = monitor.clock()
    return answer(await monitor.store.commit(lambda connection: write(connection, now)))


async def _read(request: Request, monitor: Monitor, principal: Principal) -> RulesRequest:
    wish = await read_message(request, RulesRequest, monitor.settings)
    rulebook.check(wish, monitor.settings)
    return wish.model_copy(update={"changed_by": principal.signature(wish.changed_by)})


def _refuse_other(principal: Principal, project: str) -> None:
    if not principal.sees(project):
        raise Forbidden(f"token {principal.name!r} is for project {principal.project!r}, not {project!r}")
