"""What pages and programs ask about runs: each question one function over a reading connection."""

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, bindparam, func, select

from monitor_service import checkpoints as checkpoint_notes
from monitor_service import ledger, tables
from monitor_service.commands import as_command
from monitor_service.errors import NotFound
from monitor_service.facts import Facts
from monitor_service.health import RunStatus
from monitor_service.prepared import Prepared, one_of
from monitor_service.span import Span
from monitor_service.views import (
    AttemptView,
    CheckpointPage,
    CheckpointView,
    CommandChange,
    CommandPage,
    CommandView,
    Cost,
    EventPage,
    EventView,
    Gap,
    HealthView,
    LastGood,
    RunDetail,
    SessionPage,
    SessionView,
    TransitionView,
)
from shared.commands import OPEN_COMMAND_STATES
from shared.events import Severity
from shared.exchange import OutboxCounts

_YOUNGEST = tables.commands.c.issued_at.desc(), tables.commands.c.id
"""First of some commands."""

_RUN = Prepared(select(tables.runs).where(tables.runs.c.name == bindparam("name")))
_OPEN = Prepared(
    select(tables.commands)
    .where(tables.commands.c.run_id == bindparam("run"), one_of(tables.commands.c.state, OPEN_COMMAND_STATES))
    .order_by(*_YOUNGEST)
)


def run_detail(connection: Connection, run: str) -> RunDetail:
    """All about a run except its long lists."""
    row = run_row(connection, run)
    return RunDetail(
        **summary(row),
        config=json.loads(row.config),
        checkpoint_interval_steps=row.checkpoint_interval_steps,
        series=json.loads(row.series_names),
        attempts=_attempts(connection, row.id),
        transitions=_transitions(connection, row.id),
    )


def health(connection: Connection, run: str) -> HealthView:
    """How a run is, since when and why."""
    row = run_row(connection, run)
    facts = Facts.model_validate_json(row.facts)
    shown = {name: value for name, value in summary(row, facts).items() if name in HealthView.model_fields}
    judged = facts.judged
    return HealthView(
        **{**shown, "risk": judged.risk},
        concerns=judged.concerns,
        suggestion=judged.suggestion,
        needs_person=judged.needs_person,
        open_commands=_views(connection, row, _OPEN.all(connection, run=row.id)),
    )


def events(
    connection: Connection,
    run: str,
    *,
    types: Collection[str] = (),
    without: Collection[str] = (),
    severities: Collection[Severity] = (),
    span: Span | None = None,
    naming: str = "",
    after: int = 0,
    limit: int = 200,
    newest_first: bool = False,
) -> EventPage:
    """Events in the order of arrival, those with an id above ``after``; or the newest of them, backwards.

    With ``naming`` only those that hold this text as a value, letter for letter.
    """
    known = tables.events.c
    order = known.id.desc() if newest_first else known.id
    query = select(tables.events).where(known.run_id == run_row(connection, run).id, known.id > after)
    if types:
        query = query.where(known.type.in_(types))
    if without:
        query = query.where(known.type.not_in(without))
    if severities:
        query = query.where(known.severity.in_(severities))
    if span is not None:
        query = query.where(*span.conditions())
    if naming:
        query = query.where(_place(connection)(known.data, json.dumps(naming)) > 0)
    rows = connection.execute(query.order_by(order).limit(limit)).all()
    return EventPage(items=[_event(row) for row in rows])


def _place(connection: Connection) -> Callable[..., ColumnElement[int]]:
    """The database's function for where a text stands in another, from 1 on. SQLite's LIKE takes a for A."""
    return func.instr if connection.dialect.name == "sqlite" else func.strpos


def sessions(connection: Connection, run: str) -> SessionPage:
    """What was received from each session, and what is missing."""
    told = [
        SessionView(
            session=one.session,
            last_seq=one.last_seq,
            received=one.received,
            missing=one.missing,
            gaps=[Gap(first_seq=first, last_seq=last) for first, last in one.gaps],
            outbox=OutboxCounts.model_validate_json(one.outbox),
            received_at=one.received_at,
        )
        for one in ledger.sessions(connection, run_row(connection, run).id)
    ]
    return SessionPage(items=told)


def checkpoints(connection: Connection, run: str) -> CheckpointPage:
    """Checkpoints with their latest state, youngest step first."""
    known = tables.checkpoints.c
    rows = connection.execute(
        select(tables.checkpoints)
        .where(known.run_id == run_row(connection, run).id)
        .order_by(known.step.desc(), known.time.desc())
    )
    return CheckpointPage(items=[_checkpoint(row) for row in rows])


def commands(connection: Connection, run: str, limit: int | None = None) -> CommandPage:
    """Commands with their lives, youngest first; the youngest ``limit``, or all."""
    return CommandPage(items=_commands(connection, run_row(connection, run), limit=limit))


def command(connection: Connection, run: str, command_id: str) -> CommandView:
    """One command with its life so far."""
    found = _commands(connection, run_row(connection, run), tables.commands.c.id == command_id)
    if not found:
        raise NotFound.command(run, command_id)
    return found[0]


def run_row(connection: Connection, name: str) -> Any:
    """The run's row. Raises NotFound."""
    row = _RUN.first(connection, name=name)
    if row is None:
        raise NotFound.run(name)
    return row


def summary(row: Any, facts: Facts | None = None) -> dict[str, Any]:
    """The fields of a ``RunSummary``; ``facts`` are the row's, where they are read already."""
    facts = facts or Facts.model_validate_json(row.facts)
    return {
        "run": row.name,
        "project": row.project,
        "status": RunStatus(row.status),
        "since": row.status_since,
        "reasons": json.loads(row.reasons),
        "attempt": facts.attempt,
        "step": facts.reached,
        "total_steps": row.total_steps,
        "started_at": row.started_at,
        "last_seen": facts.last_seen,
        "last_step_at": facts.last_step_at,
        "loss": facts.loss,
        "grad_norm": facts.grad_norm,
        "findings": sum(n for key, n in facts.findings.items() if not key.endswith(f"/{Severity.INFO}")),
        "last_good_checkpoint": LastGood(**facts.last_good.model_dump()) if facts.last_good else None,
        "cost": Cost(
            skipped_steps=sum(facts.skipped.values()),
            rollbacks=sum(facts.rollbacks.values()),
            steps_lost=facts.steps_lost,
            seconds_lost=facts.seconds_lost,
        ),
        "risk": facts.judged.risk.level,
    }


def _attempts(connection: Connection, run_id: int) -> list[AttemptView]:
    known = tables.attempts.c
    rows = connection.execute(select(tables.attempts).where(known.run_id == run_id).order_by(known.attempt))
    return [
        AttemptView.model_validate({name: getattr(row, name) for name in AttemptView.model_fields})
        for row in rows
    ]


def _transitions(connection: Connection, run_id: int) -> list[TransitionView]:
    known = tables.transitions.c
    rows = connection.execute(select(tables.transitions).where(known.run_id == run_id).order_by(known.id))
    return [
        TransitionView(
            from_status=RunStatus(row.from_status),
            to_status=RunStatus(row.to_status),
            at=row.at,
            step=row.step,
            reasons=json.loads(row.reasons),
        )
        for row in rows
    ]


def _commands(connection: Connection, run: Any, *which: Any, limit: int | None = None) -> list[CommandView]:
    query = select(tables.commands).where(tables.commands.c.run_id == run.id, *which).order_by(*_YOUNGEST)
    return _views(connection, run, connection.execute(query.limit(limit)).all())


def _views(connection: Connection, run: Any, rows: Sequence[Any]) -> list[CommandView]:
    """Commands of a run, with their lives."""
    lives = _histories(connection, [row.id for row in rows])
    return [
        CommandView(**as_command(row).model_dump(), run=run.name, state=row.state, history=lives[row.id])
        for row in rows
    ]


def _histories(connection: Connection, ids: Sequence[str]) -> dict[str, list[CommandChange]]:
    lives: dict[str, list[CommandChange]] = {id_: [] for id_ in ids}
    known = tables.command_history.c
    if ids:
        rows = connection.execute(
            select(tables.command_history).where(known.command_id.in_(ids)).order_by(known.id)
        )
        for row in rows:
            lives[row.command_id].append(CommandChange(state=row.state, time=row.time, message=row.message))
    return lives


def _event(row: Row[Any]) -> EventView:
    shown = {name: getattr(row, name) for name in EventView.model_fields if name != "data"}
    return EventView(**shown, data=json.loads(row.data))


def _checkpoint(row: Row[Any]) -> CheckpointView:
    shown = {name: getattr(row, name) for name in ("checkpoint", "attempt", "step", "state", "time")}
    return CheckpointView(**shown, **checkpoint_notes.details(row))
