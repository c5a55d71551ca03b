"""Commands: order one, and see what became of it."""

import asyncio
from collections.abc import Callable
from datetime import datetime

from fastapi import APIRouter, Request, Response
from sqlalchemy import Connection

from monitor_service import queries, runs
from monitor_service.access import Principal
from monitor_service.api import bounds
from monitor_service.api.answers import answer
from monitor_service.api.body import read_message
from monitor_service.api.dependencies import ConnectionDep, Monitor, MonitorDep
from monitor_service.api.ingest import RunName
from monitor_service.api.openapi import body_of
from monitor_service.api.permissions import PrincipalDep, needs
from monitor_service.concerns import Acceptance
from monitor_service.tokens import Scope
from monitor_service.views import CommandPage, CommandView
from shared.commands import Command, CommandRequest

router = APIRouter(tags=["control"])


def place_order(monitor: Monitor, run: str, request: CommandRequest) -> CommandView:
    """Order a command and wake the trainer's held reply. It waits for the commit: call it in a thread.

    Raises:
        NotFound: the run is not registered.
        Conflict: the run is over, or a command of the same kind is open.
    """
    bounds.check(request)
    return _place(monitor, run, lambda connection, now: runs.order(connection, run, request, now))


def accept_suggestion(monitor: Monitor, run: str, acceptance: Acceptance) -> CommandView:
    """Order what was suggested, and wake the trainer's held reply. For a thread, too.

    Raises:
        NotFound: the run is not registered.
        Conflict: the suggestion stands no more, or a rollback is open.
    """
    return _place(monitor, run, lambda connection, now: runs.accept(connection, run, acceptance, now))


def _place(monitor: Monitor, run: str, order: Callable[[Connection, datetime], Command]) -> CommandView:
    now = monitor.clock()
    view = monitor.store.write(lambda connection: queries.command(connection, run, order(connection, now).id))
    monitor.bell.ring(run)
    return view


def _signed(wish: CommandRequest, principal: Principal) -> CommandRequest:
    """The order with the token behind it on record, whatever name it gives itself."""
    return wish.model_copy(update={"issued_by": principal.signature(wish.issued_by)})


@router.post(
    "/runs/{run}/commands",
    status_code=201,
    response_model=CommandView,
    openapi_extra=body_of(CommandRequest),
    dependencies=[needs(Scope.CONTROL)],
)
async def order(run: RunName, request: Request, monitor: MonitorDep, principal: PrincipalDep) -> Response:
    """Ask the trainer to roll back, to stop, or to save a checkpoint."""
    wish = _signed(await read_message(request, CommandRequest, monitor.settings), principal)
    view = await asyncio.to_thread(place_order, monitor, run, wish)
    return answer(view, 201, {"Location": f"/api/v1/runs/{run}/commands/{view.id}"})


@router.post(
    "/runs/{run}/suggestion/accept",
    status_code=201,
    response_model=CommandView,
    openapi_extra=body_of(Acceptance),
    dependencies=[needs(Scope.CONTROL)],
)
async def accept(run: RunName, request: Request, monitor: MonitorDep, principal: PrincipalDep) -> Response:
    """Order the rollback that the policy suggests, as health tells it; once."""
    told = await read_message(request, Acceptance, monitor.settings)
    signed = told.model_copy(update={"issued_by": principal.signature(told.issued_by)})
    view = await asyncio.to_thread(accept_suggestion, monitor, run, signed)
    return answer(view, 201, {"Location": f"/api/v1/runs/{run}/commands/{view.id}"})


@router.get("/runs/{run}/commands", response_model=CommandPage, dependencies=[needs(Scope.READ)])
def commands(run: RunName, connection: ConnectionDep) -> Response:
    """Commands with their lives, youngest first."""
    return answer(queries.commands(connection, run))


@router.get("/runs/{run}/commands/{command}", response_model=CommandView, dependencies=[needs(Scope.READ)])
def command(run: RunName, command: str, connection: ConnectionDep) -> Response:
    """One command with its life so far."""
    return answer(queries.command(connection, run, command))
