"""Commands: order one, take it back, and see what became of it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from sqlalchemy import Connection

from monitor_service import ordering, queries
from monitor_service.access import Principal
from monitor_service.api import bounds
from monitor_service.api.answers import answer
from monitor_service.api.body import read_message
from monitor_service.api.dependencies import ConnectionDep, Monitor, MonitorDep
from monitor_service.api.ingest import RunName
from monitor_service.api.openapi import body_of
from monitor_service.api.paths import API
from monitor_service.api.permissions import PrincipalDep, needs
from monitor_service.commands import Cancellation
from monitor_service.concerns import Acceptance
from monitor_service.order_keys import OrderKey, once
from monitor_service.tokens import Scope
from monitor_service.views import CommandPage, CommandView
from shared.commands import Command, CommandRequest, CommandState

router = APIRouter(prefix=API, tags=["control"])

IdempotencyKey = Annotated[
    str | None,
    Header(
        description="Sent again with the same key, an order is answered with the command that it made (200) "
        "and makes no second one. Kept as long as the run.",
        examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"],
    ),
]
_REPEATED: dict[int | str, dict[str, Any]] = {
    200: {"model": CommandView, "description": "Ordered before, with this key; as it is now."}
}
_ASKED: dict[int | str, dict[str, Any]] = {
    202: {"model": CommandView, "description": "The trainer has it, and is asked to drop it."}
}


@dataclass(frozen=True)
class Placed:
    """A command, and whether this order made it."""

    view: CommandView
    is_new: bool


def place_order(monitor: Monitor, run: str, request: CommandRequest, key: OrderKey | None = None) -> Placed:
    """Order a command and wake the trainer's held reply. It waits for the commit: call it in a thread.

    Raises:
        NotFound: the run is not registered.
        Conflict: the run is over, or a command of the same kind is open.
        KeyReused: another order came with this key.
    """
    bounds.check(request)
    return _place(monitor, run, key, lambda connection, now: ordering.order(connection, run, request, now))


def accept_suggestion(
    monitor: Monitor, run: str, acceptance: Acceptance, key: OrderKey | None = None
) -> Placed:
    """Order what was suggested, and wake the trainer's held reply. For a thread, too.

    Raises:
        NotFound: the run is not registered.
        Conflict: the suggestion stands no more, or a rollback is open.
        KeyReused: another order came with this key.
    """
    return _place(
        monitor, run, key, lambda connection, now: ordering.accept(connection, run, acceptance, now)
    )


def _place(
    monitor: Monitor, run: str, key: OrderKey | None, order: Callable[[Connection, datetime], Command]
) -> Placed:
    now = monitor.clock()

    def write(connection: Connection) -> Placed:
        id_, is_new = once(connection, run, key, lambda: order(connection, now).id)
        return Placed(queries.command(connection, run, id_), is_new)

    placed = monitor.store.write(write)
    monitor.bell.ring(run)
    return placed


def take_back(monitor: Monitor, run: str, command: str, cancellation: Cancellation) -> CommandView:
    """Cancel a command, and wake the trainer's held reply where it must hear of it. For a thread, too.

    Raises:
        NotFound: there is no such command.
        Conflict: the trainer has taken it, or it has ended.
    """
    now = monitor.clock()

    def write(connection: Connection) -> CommandView:
        ordering.cancel(connection, run, command, cancellation, now)
        return queries.command(connection, run, command)

    view = monitor.store.write(write)
    monitor.bell.ring(run)
    return view


def _answer(run: str, placed: Placed) -> Response:
    headers = {"Location": f"/api/v1/runs/{run}/commands/{placed.view.id}"}
    return answer(placed.view, 201 if placed.is_new else 200, headers)


def _signed(wish: CommandRequest, principal: Principal) -> CommandRequest:
    """The order with the token behind it on record, whatever name it gives itself."""
    return wish.model_copy(update={"issued_by": principal.signature(wish.issued_by)})


@router.post(
    "/runs/{run}/commands",
    status_code=201,
    response_model=CommandView,
    responses=_REPEATED,
    openapi_extra=body_of(CommandRequest),
    dependencies=[needs(Scope.CONTROL)],
)
async def order(
    run: RunName,
    request: Request,
    monitor: MonitorDep,
    principal: PrincipalDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Ask the trainer to roll back, to stop, or to save a checkpoint."""
    wish = await read_message(request, CommandRequest, monitor.settings)
    key = OrderKey.read(idempotency_key, wish)
    return _answer(run, await asyncio.to_thread(place_order, monitor, run, _signed(wish, principal), key))


@router.post(
    "/runs/{run}/suggestion/accept",
    status_code=201,
    response_model=CommandView,
    responses=_REPEATED,
    openapi_extra=body_of(Acceptance),
    dependencies=[needs(Scope.CONTROL)],
)
async def accept(
    run: RunName,
    request: Request,
    monitor: MonitorDep,
    principal: PrincipalDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Order the rollback that the policy suggests, as health tells it; once."""
    told = await read_message(request, Acceptance, monitor.settings)
    key = OrderKey.read(idempotency_key, told)
    signed = told.model_copy(update={"issued_by": principal.signature(told.issued_by)})
    return _answer(run, await asyncio.to_thread(accept_suggestion, monitor, run, signed, key))


@router.get("/runs/{run}/commands", response_model=CommandPage, dependencies=[needs(Scope.READ)])
def commands(run: RunName, connection: ConnectionDep) -> Response:
    """Commands with their lives, youngest first."""
    return answer(queries.commands(connection, run))


@router.get("/runs/{run}/commands/{command}", response_model=CommandView, dependencies=[needs(Scope.READ)])
def command(run: RunName, command: str, connection: ConnectionDep) -> Response:
    """One command with its life so far."""
    return answer(queries.command(connection, run, command))


@router.delete(
    "/runs/{run}/commands/{command}",
    response_model=CommandView,
    responses=_ASKED,
    dependencies=[needs(Scope.CONTROL)],
)
async def cancel(
    run: RunName,
    command: str,
    monitor: MonitorDep,
    principal: PrincipalDep,
    reason: Annotated[str, Query(min_length=1, max_length=500, examples=["the wrong run"])],
    cancelled_by: Annotated[str, Query(min_length=1, max_length=100)] = "operator",
) -> Response:
    """Take a command back that the trainer has not accepted yet; 409 says in what state it is.

    200: nobody will carry it out. 202: the trainer may hold it and is asked to drop it; its word decides
    whether it ends ``cancelled`` or was faster. Asked again, it answers the same.
    """
    signed = Cancellation(reason=reason, cancelled_by=principal.signature(cancelled_by))
    view = await asyncio.to_thread(take_back, monitor, run, command, signed)
    return answer(view, 202 if view.state is CommandState.CANCELLING else 200)
