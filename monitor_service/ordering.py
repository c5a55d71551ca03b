"""What a person asks of a run: to order a command, to take up what is suggested, to take a command back."""

import logging
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from monitor_service import checkpoints, commands, judging, notices, runs
from monitor_service.commands import Cancellation
from monitor_service.concerns import Acceptance
from monitor_service.errors import Conflict, NotFound
from monitor_service.facts import Facts
from monitor_service.health import OVER
from monitor_service.landmarks import Unanswered
from shared.commands import Command, CommandKind, CommandRequest, CommandState

log = logging.getLogger(__name__)

_TAKEN_BACK = frozenset({CommandState.CANCELLED, CommandState.CANCELLING})


def order(connection: Connection, name: str, request: CommandRequest, now: datetime) -> Command:
    """Order a command.

    Raises:
        NotFound: the run is not registered.
        Conflict: the run is over, a command of the same kind is open, or it leads to a bad checkpoint.
    """
    run = runs.hold(connection, name)
    if run.status in OVER:
        raise Conflict(f"run {name!r} is over ({run.status}); nobody would carry out a {request.kind}")
    if request.to_step is not None:
        checkpoints.refuse_bad(connection, run.id, request.to_step)
    return _order(connection, run, Facts.model_validate_json(run.facts), request, now)


def accept(connection: Connection, name: str, acceptance: Acceptance, now: datetime) -> Command:
    """Order the rollback that was suggested.

    Raises:
        NotFound: the run is not registered.
        Conflict: that suggestion does not stand (any more), or a rollback is open.
    """
    run = runs.hold(connection, name)
    facts = Facts.model_validate_json(run.facts)
    stands = facts.judged.suggestion
    if stands is None:
        raise Conflict(f"nothing is suggested for run {name!r} now; it is {run.status}")
    if stands.id != acceptance.suggestion:
        raise Conflict(f"suggestion {acceptance.suggestion!r} has passed; {stands.id!r} stands now")
    wish = CommandRequest(
        kind=CommandKind.ROLL_BACK,
        reason=f"suggested: {stands.reason}"[:500],
        issued_by=acceptance.issued_by,
    )
    return _order(connection, run, facts, wish, now)


def cancel(
    connection: Connection, name: str, command: str, cancellation: Cancellation, now: datetime
) -> CommandState:
    """Take a command back, and say whether that is done or waits for the trainer's word.

    Raises:
        NotFound: the run is not registered, or has no such command.
        Conflict: the trainer has taken it, or it has ended.
    """
    run = runs.hold(connection, name)
    commands.expire(connection, commands.due(connection, now), now)
    why = f"cancelled by {cancellation.cancelled_by}: {cancellation.reason}"
    known = commands.find(connection, run.id, command)
    if known is None:
        raise NotFound.command(name, command)
    state = commands.cancel(connection, known.id, now, why)
    if state not in _TAKEN_BACK:
        raise Conflict(
            f"command {command} is {state}; only one that is pending or delivered can be cancelled. "
            f"/api/v1/runs/{name}/commands/{command} tells its life"
        )
    facts = Facts.model_validate_json(run.facts)
    if known.kind == CommandKind.ROLL_BACK and known.state != state:
        facts.note_taken_back(f"{cancellation.cancelled_by} cancelled a rollback: {cancellation.reason}", now)
    left = commands.waiting(connection, run.id, now).commands
    facts.unanswered = Unanswered.of(left[0]) if left else None
    judging.store_facts(connection, run, facts)
    notices.tell(connection, name)
    log.info("run %s: command %s is %s, %s", name, command, state, why)
    return state


def _order(
    connection: Connection, run: Row[Any], facts: Facts, request: CommandRequest, now: datetime
) -> Command:
    facts.note_person()
    command = judging.order(connection, run, facts, request, now)
    judging.store_facts(connection, run, facts)
    return command
