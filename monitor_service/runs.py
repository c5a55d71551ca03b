"""Runs: each thing that happens to one is one transaction, with the decision that follows from it."""

import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from monitor_service import (
    batches,
    checkpoints,
    commands,
    judging,
    pictures,
    rulebook,
    tables,
)
from monitor_service.batches import Incoming
from monitor_service.commands import Waiting
from monitor_service.errors import AnotherRun, NotFound
from monitor_service.facts import Facts
from monitor_service.health import RunStatus
from monitor_service.landmarks import Unanswered
from monitor_service.prepared import Prepared
from monitor_service.recall import Recall
from monitor_service.settings import Settings
from shared.events import (
    AttemptStarted,
    CheckpointChanged,
    CommandUpdate,
    Picture,
    RunEnded,
)
from shared.exchange import Batch, RunSpec

log = logging.getLogger(__name__)

JSON = TypeAdapter(Any, config={"ser_json_inf_nan": "strings"})
"""Any JSON value, with NaN and infinity as texts."""

_RUN = Prepared(
    select(
        *[tables.runs.c[name] for name in ("id", "name", "project", "status", "facts", "series_names")],
        *[tables.runs.c[name] for name in ("checkpoint_interval_steps", "rules", "identity")],
    )
    .where(tables.runs.c.name == bindparam("run"))
    .with_for_update()
)


@dataclass(frozen=True)
class Exchanged:
    """What one batch led to."""

    is_duplicate: bool
    waiting: Waiting
    is_urgent: bool
    """A command or a withdrawal goes out for the first time, or to somebody who missed the last reply."""


def register(connection: Connection, name: str, spec: RunSpec, now: datetime) -> bool:
    """Make the run known, or bring config, project and length up to date; ``True`` if it is new.

    Raises:
        AnotherRun: the name belongs to a training of another identity.
    """
    known = {
        "project": spec.project,
        "config": JSON.dump_json(spec.config).decode(),
        "total_steps": spec.total_steps,
        "checkpoint_interval_steps": spec.checkpoint_interval_steps,
    }
    rulebook.lock(connection, spec.project, shared=True)
    if _update(connection, name, spec, known):
        return False
    facts = Facts.at_registration(now)
    first = {
        "name": name,
        "started_at": spec.started_at,
        "status": RunStatus.HEALTHY,
        "status_since": now,
        "reasons": json.dumps(["registered, no step received yet"]),
        "facts": facts.model_dump_json(),
        "series_names": "[]",
        "identity": spec.identity,
        "rules": rulebook.effective(connection, name, spec.project),
        # not 0: what was prepared for a run that has left must not fit one that got its id
        "compactions": secrets.randbelow(2**32),
    }
    try:
        with connection.begin_nested():
            connection.execute(insert(tables.runs).values({**known, **first}))
    except IntegrityError:  # another process registered it just now
        return not _update(connection, name, spec, known)
    log.info("run %s registered in project %s", name, spec.project)
    return True


def _update(connection: Connection, name: str, spec: RunSpec, known: Mapping[str, Any]) -> bool:
    """Whether there is such a run. One that has no identity yet takes the one that it is told."""
    run: Row[Any] | None = _RUN.first(connection, run=name)
    if run is None:
        return False
    if spec.identity is not None and run.identity not in (None, spec.identity):
        begun = connection.execute(select(tables.runs.c.started_at).where(tables.runs.c.id == run.id))
        raise AnotherRun(name, spec.identity, run.identity, begun.scalar_one())
    values = {
        **known,
        "identity": run.identity or spec.identity,
        "rules": rulebook.effective(connection, name, spec.project),
    }
    connection.execute(update(tables.runs).where(tables.runs.c.id == run.id).values(values))
    return True


def exchange(
    connection: Connection, name: str, incoming: Incoming, now: datetime, settings: Settings, recall: Recall
) -> Exchanged:
    """Store a batch unless it is known, judge the run anew, and collect the commands that wait for it.

    Raises:
        NotFound: the run is not registered.
        Conflict: ``(session, seq)`` came before with other content.
        AttemptTaken: the attempt belongs to another process.
    """
    run, batch = hold(connection, name), incoming.batch
    facts = recall.facts_in(run.id, run.facts)
    known = batches.before(connection, run, batch)
    is_duplicate = batches.is_known(run, incoming, known)
    facts.hear(now)
    if not is_duplicate:
        batches.refuse_strangers(connection, run, batch, known)
        batches.write_down(connection, run, incoming, known, now)
        facts.take(batch, now)
        _take_notes(connection, run, batch, facts, now)
    # what the batch itself tells makes fewer of them, never more
    waiting = commands.waiting(connection, run.id, now) if known.is_any_waiting else commands.NOTHING
    facts.unanswered = Unanswered.of(waiting.commands[0]) if waiting.commands else None
    is_news = facts.note_withdrawals(batches.life_of(batch.session), waiting.withdrawn)
    if judging.settle(connection, run, facts, now, settings, recall):
        waiting = commands.waiting(connection, run.id, now)
    was_missed = is_duplicate and bool(waiting.commands or waiting.withdrawn)
    is_urgent = bool(waiting.fresh) or is_news or was_missed
    return Exchanged(is_duplicate, commands.deliver(connection, waiting, now), is_urgent)


def deliver(connection: Connection, name: str, session: str, now: datetime) -> Waiting:
    """What waits for the run; its commands count as delivered from now on, to the process of ``session``."""
    run = hold(connection, name)
    waiting = commands.waiting(connection, run.id, now)
    facts = Facts.model_validate_json(run.facts)
    if facts.note_withdrawals(batches.life_of(session), waiting.withdrawn):
        judging.store_facts(connection, run, facts)
    return commands.deliver(connection, waiting, now)


def look(connection: Connection, name: str, now: datetime, settings: Settings, recall: Recall) -> None:
    """Judge a run by the time that has passed."""
    run = hold(connection, name)
    judging.settle(connection, run, recall.facts_in(run.id, run.facts), now, settings, recall)


def hold(connection: Connection, name: str) -> Row[Any]:
    """The run's row, which no other writer touches until this transaction ends. Raises NotFound."""
    row: Row[Any] | None = _RUN.first(connection, run=name)
    if row is None:
        raise NotFound.run(name)
    return row


def _take_notes(connection: Connection, run: Row[Any], batch: Batch, facts: Facts, now: datetime) -> None:
    """Events that concern commands and checkpoints go to their tables, and what follows to ``facts``."""
    kinds = {type(event) for event in batch.events}
    for event in batch.events:
        if isinstance(event, CheckpointChanged):
            checkpoints.note(connection, run.id, batch.attempt, event)
        elif isinstance(event, Picture):
            pictures.note(connection, run.id, batch.attempt, event)
        elif isinstance(event, CommandUpdate) and not commands.report(connection, run.id, event, now):
            log.warning("run %s: %s of command %s changes nothing", run.name, event.state, event.command)
    if CheckpointChanged in kinds:
        facts.last_good = checkpoints.newest_good(connection, run.id)
        facts.last_valid = checkpoints.newest_valid(connection, run.id)
    if kinds & {CommandUpdate, RunEnded} and facts.ended is not None:
        commands.abandon(connection, run.id, now, "the run ended first")
    for event in batch.events:
        if isinstance(event, AttemptStarted) and event.reason != "rollback":
            commands.abandon_accepted(connection, run.id, event.attempt, now, "the trainer started anew")
    if kinds & {CommandUpdate, RunEnded, AttemptStarted}:
        facts.obeying = commands.accepted_rollback(connection, run.id)
