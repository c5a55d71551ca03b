"""Commands: ordered once, delivered until the trainer answers, and every change of state on record."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from uuid import uuid4

from pydantic import Field
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Row,
    bindparam,
    exists,
    insert,
    select,
    update,
)

from monitor_service import tables
from monitor_service.errors import Conflict
from monitor_service.prepared import Prepared, one_of
from shared.base import Message
from shared.commands import OPEN_COMMAND_STATES, Command, CommandKind, CommandRequest, CommandState
from shared.events import CommandUpdate

UNANSWERED = frozenset({CommandState.PENDING, CommandState.DELIVERED})
"""The trainer has not said anything about it yet, so every reply carries it."""

CANCELLABLE = UNANSWERED
"""What can be taken back."""

WITH_THE_TRAINER = UNANSWERED | {CommandState.CANCELLING}
"""The trainer's word is awaited: whether it takes it, or has dropped it."""

_KNOWN = tables.commands.c
_OF_RUN = _KNOWN.run_id == bindparam("run", type_=BigInteger)
_IS_WAITING = _OF_RUN & one_of(_KNOWN.state, WITH_THE_TRAINER)
IS_ANY_WAITING = exists().where(_IS_WAITING).label("is_any_waiting")
"""A column for a query with ``run``: without such an order ``waiting`` need not be asked."""

_WAITING = Prepared(
    select(tables.commands)
    .where(_IS_WAITING, _KNOWN.expires_at > bindparam("now"))
    .order_by(_KNOWN.issued_at, _KNOWN.id)
)
_IS_OPEN = one_of(_KNOWN.state, OPEN_COMMAND_STATES)
_OPEN = Prepared(select(_KNOWN.id).where(_OF_RUN, _KNOWN.kind == bindparam("kind"), _IS_OPEN))
_IS_UNANSWERED = one_of(_KNOWN.state, WITH_THE_TRAINER) & (_KNOWN.expires_at <= bindparam("now"))
_IS_FORGOTTEN = (_KNOWN.state == CommandState.ACCEPTED) & (_KNOWN.expires_at <= bindparam("forgotten"))
_DUE = Prepared(select(_KNOWN.id).where(_IS_UNANSWERED | _IS_FORGOTTEN))
_ORDERED = (*Command.model_fields, "run_id", "state")
_ORDER = Prepared(insert(tables.commands).values({name: bindparam(name) for name in _ORDERED}))
_CHANGED = ("command_id", "state", "time", "message")
_NOTE = Prepared(insert(tables.command_history).values({name: bindparam(name) for name in _CHANGED}))

PATIENCE = timedelta(minutes=10)
"""How long past its time an accepted order may take; a result that comes later still counts."""

_MAY_REACH = {
    CommandState.ACCEPTED: WITH_THE_TRAINER | {CommandState.EXPIRED},
    CommandState.SUCCEEDED: OPEN_COMMAND_STATES | {CommandState.EXPIRED},
    CommandState.FAILED: OPEN_COMMAND_STATES | {CommandState.EXPIRED},
    CommandState.REFUSED: OPEN_COMMAND_STATES | {CommandState.EXPIRED},
    CommandState.CANCELLED: frozenset({CommandState.CANCELLING, CommandState.EXPIRED}),
}
"""From which states a report leads to another. An order that lapsed here was perhaps in time there: the
trainer knows. What it has settled stays settled, so a late ``accepted`` changes nothing."""


def order(
    connection: Connection, run_id: int, attempt: int, request: CommandRequest, now: datetime
) -> Command:
    """Record an order. The caller holds the run's row.

    Raises:
        Conflict: one of the same kind is open.
    """
    expire(connection, due(connection, now), now)
    open_id = open_of_kind(connection, run_id, request.kind)
    if open_id is not None:
        raise Conflict(f"a {request.kind} is open already: command {open_id}; wait for its outcome")
    command = Command(
        id=uuid4().hex,
        kind=request.kind,
        reason=request.reason,
        issued_by=request.issued_by,
        issued_at=now,
        expires_at=now + timedelta(seconds=request.valid_for_s),
        attempt=max(attempt, 1),
        to_step=request.to_step,
    )
    row = {**command.model_dump(), "run_id": run_id, "state": CommandState.PENDING}
    _ORDER.change(connection, **row)
    _note(connection, [command.id], CommandState.PENDING, now, f"ordered by {request.issued_by}")
    return command


def open_of_kind(connection: Connection, run_id: int, kind: CommandKind) -> str | None:
    """Id of the open command of this kind, if there is one."""
    found = _OPEN.first(connection, run=run_id, kind=kind)
    return None if found is None else str(found.id)


def rollback_since(connection: Connection, run_id: int, moment: datetime) -> str | None:
    """Id of a rollback that is open, or that was ordered at ``moment`` or later and has succeeded."""
    known = tables.commands.c
    has_helped = (known.state == CommandState.SUCCEEDED) & (known.issued_at >= moment)
    return connection.scalar(
        select(known.id)
        .where(
            known.run_id == run_id,
            known.kind == CommandKind.ROLL_BACK,
            known.state.in_(OPEN_COMMAND_STATES) | has_helped,
        )
        .order_by(known.issued_at.desc())
        .limit(1)
    )


def accepted_rollback(connection: Connection, run_id: int) -> str | None:
    """Id of the rollback that the trainer is carrying out, if there is one."""
    return connection.scalar(
        select(tables.commands.c.id).where(
            tables.commands.c.run_id == run_id,
            tables.commands.c.kind == CommandKind.ROLL_BACK,
            tables.commands.c.state == CommandState.ACCEPTED,
        )
    )


class Cancellation(Message):
    """Who takes a command back, and why."""

    reason: str = Field(min_length=1, max_length=500)
    cancelled_by: str = Field("operator", min_length=1, max_length=100)


@dataclass(frozen=True)
class Waiting:
    """Commands of one run that the trainer has said nothing about, oldest first."""

    commands: list[Command]
    fresh: list[str]
    """Ids of those that go out for the first time."""
    withdrawn: list[str]
    """Ids of those that went out and are to be dropped."""


NOTHING = Waiting([], [], [])


def waiting(connection: Connection, run_id: int, now: datetime) -> Waiting:
    """What the next reply to this run must carry."""
    rows = _WAITING.all(connection, run=run_id, now=now)
    fresh = [row.id for row in rows if row.state == CommandState.PENDING]
    asked = [as_command(row) for row in rows if row.state in UNANSWERED]
    return Waiting(asked, fresh, [row.id for row in rows if row.state == CommandState.CANCELLING])


def deliver(connection: Connection, some: Waiting, now: datetime) -> Waiting:
    """The same, for the reply: its commands count as delivered from now on."""
    _move(connection, some.fresh, {CommandState.PENDING}, CommandState.DELIVERED, now, "")
    return some


def find(connection: Connection, run_id: int, command: str) -> Row[Any] | None:
    """The command of this run, or ``None`` if it has no such one."""
    known = tables.commands.c
    return connection.execute(
        select(tables.commands).where(known.id == command, known.run_id == run_id)
    ).first()


def cancel(connection: Connection, command: str, now: datetime, why: str) -> CommandState:
    """Take an order back that there is; returns the state that it has now.

    Compare and set: what the trainer cannot know of is ``cancelled``; what went out to it is ``cancelling``
    until its word comes. Any other state stays as it is. The caller holds the run's row.
    """
    _move(connection, [command], {CommandState.PENDING}, CommandState.CANCELLED, now, why)
    _move(connection, [command], {CommandState.DELIVERED}, CommandState.CANCELLING, now, why)
    known = tables.commands.c
    return CommandState(connection.execute(select(known.state).where(known.id == command)).scalar_one())


def report(connection: Connection, run_id: int, change: CommandUpdate, now: datetime) -> bool:
    """What the trainer says about a command; ``False`` if that is unknown here or settled already."""
    becomes = CommandState(change.state)
    known = connection.scalar(
        select(tables.commands.c.id).where(
            tables.commands.c.id == change.command, tables.commands.c.run_id == run_id
        )
    )
    moved = _move(connection, [known] if known else [], _MAY_REACH[becomes], becomes, now, change.message)
    return bool(moved)


def due(connection: Connection, now: datetime) -> list[str]:
    """Ids of orders whose time is over: not accepted by then, or long since accepted without a word."""
    return [row.id for row in _DUE.all(connection, now=now, forgotten=now - PATIENCE)]


def expire(connection: Connection, ids: Collection[str], now: datetime) -> None:
    """Let these orders lapse, unless the trainer has answered in the meantime."""
    _move(connection, ids, UNANSWERED, CommandState.EXPIRED, now, "not accepted in time")
    silent = "cancelled, and the trainer did not say in time that it dropped it"
    _move(connection, ids, {CommandState.CANCELLING}, CommandState.EXPIRED, now, silent)
    _move(connection, ids, {CommandState.ACCEPTED}, CommandState.EXPIRED, now, "accepted, but no result came")


def abandon(connection: Connection, run_id: int, now: datetime, why: str) -> None:
    """Let all open commands of the run lapse: nobody is left to carry them out."""
    _lapse(connection, tables.commands.c.run_id == run_id, OPEN_COMMAND_STATES, now, why)


def abandon_accepted(connection: Connection, run_id: int, attempt: int, now: datetime, why: str) -> None:
    """Let commands lapse that a process before ``attempt`` accepted and did not finish."""
    is_older = (tables.commands.c.run_id == run_id) & (tables.commands.c.attempt < attempt)
    _lapse(connection, is_older, {CommandState.ACCEPTED}, now, why)


def _lapse(
    connection: Connection,
    which: ColumnElement[bool],
    seen: Collection[CommandState],
    now: datetime,
    why: str,
) -> None:
    ids = connection.scalars(
        select(tables.commands.c.id).where(which, tables.commands.c.state.in_(seen))
    ).all()
    _move(connection, ids, seen, CommandState.EXPIRED, now, why)


def as_command(row: Row[Any]) -> Command:
    """The message that a row of ``commands`` stands for."""
    return Command.model_validate({name: getattr(row, name) for name in Command.model_fields})


def _move(
    connection: Connection,
    ids: Collection[str],
    seen: Collection[CommandState],
    becomes: CommandState,
    now: datetime,
    message: str,
) -> list[str]:
    """Compare and set: commands among ``ids`` that are still in a state of ``seen``; returns those moved."""
    if not ids:
        return []
    moving = _moving(frozenset(seen))
    moved = [id_ for id_ in ids if moving.change(connection, command=id_, becomes=becomes)]
    _note(connection, moved, becomes, now, message)
    return moved


@cache
def _moving(seen: frozenset[CommandState]) -> Prepared:
    is_it = (_KNOWN.id == bindparam("command")) & one_of(_KNOWN.state, seen)
    return Prepared(update(tables.commands).where(is_it).values(state=bindparam("becomes")))


def _note(
    connection: Connection, ids: Collection[str], state: CommandState, now: datetime, message: str
) -> None:
    rows = [{"command_id": id_, "state": state, "time": now, "message": message} for id_ in ids]
    if rows:
        _NOTE.change_all(connection, rows)
