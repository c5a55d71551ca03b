"""Runs: each thing that happens to one is one transaction, with the decision that follows from it."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from monitor_service import (
    checkpoints,
    commands,
    judging,
    ledger,
    pictures,
    rulebook,
    series,
    tables,
)
from monitor_service.commands import Waiting
from monitor_service.errors import AnotherRun, AttemptTaken, Conflict, NotFound
from monitor_service.facts import Facts, Unanswered
from monitor_service.health import RunStatus
from monitor_service.prepared import Prepared
from monitor_service.settings import Settings
from shared.events import (
    AnyEvent,
    AttemptStarted,
    CheckpointChanged,
    CommandUpdate,
    Finding,
    Picture,
    RunEnded,
)
from shared.exchange import Batch, Columns, RunSpec

log = logging.getLogger(__name__)

JSON = TypeAdapter(Any, config={"ser_json_inf_nan": "strings"})
"""Any JSON value, with NaN and infinity as texts."""

_RUN = Prepared(select(tables.runs).where(tables.runs.c.name == bindparam("run")).with_for_update())
_ATTEMPT = Prepared(
    select(tables.attempts.c.start_step, tables.attempts.c.is_announced, tables.attempts.c.session).where(
        tables.attempts.c.run_id == bindparam("run"), tables.attempts.c.attempt == bindparam("number")
    )
)
_BATCH = Prepared(
    insert(tables.batches).values(
        {column.name: bindparam(column.name) for column in tables.batches.c if column.name != "id"}
    )
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
        raise AnotherRun(name, spec.identity, run.identity, run.started_at)
    values = {
        **known,
        "identity": run.identity or spec.identity,
        "rules": rulebook.effective(connection, name, spec.project),
    }
    connection.execute(update(tables.runs).where(tables.runs.c.id == run.id).values(values))
    return True


@dataclass(frozen=True)
class Incoming:
    """A batch made ready outside of the writer's thread: packed, and with a digest of its content."""

    batch: Batch
    payload: bytes | None
    digest: bytes

    @classmethod
    def of(cls, batch: Batch) -> "Incoming":
        """Only what the run did is content; a repeat may differ in ``hold_s`` and ``outbox``."""
        packed = series.pack(batch.columns)
        digest = hashlib.blake2b(packed.digest, digest_size=16)
        digest.update(f"{batch.attempt}".encode())
        for event in batch.events:
            digest.update(b"\n" + event.model_dump_json(exclude_unset=True).encode())
        return cls(batch, packed.payload if batch.columns.step else None, digest.digest())


def exchange(
    connection: Connection, name: str, incoming: Incoming, now: datetime, settings: Settings
) -> Exchanged:
    """Store a batch unless it is known, judge the run anew, and collect the commands that wait for it.

    Raises:
        NotFound: the run is not registered.
        Conflict: ``(session, seq)`` came before with other content.
        AttemptTaken: the attempt belongs to another process.
    """
    run = hold(connection, name)
    facts = Facts.model_validate_json(run.facts)
    is_duplicate = _is_known(connection, run, incoming)
    facts.hear(now)
    if not is_duplicate:
        _refuse_strangers(connection, run, incoming.batch)
        _store(connection, run, incoming, now)
        facts.take(incoming.batch, now)
        _take_notes(connection, run, incoming.batch, facts, now)
    waiting = commands.waiting(connection, run.id, now)
    facts.unanswered = Unanswered.of(waiting.commands[0]) if waiting.commands else None
    is_news = facts.note_withdrawals(_life_of(incoming.batch.session), waiting.withdrawn)
    if judging.settle(connection, run, facts, now, settings):
        waiting = commands.waiting(connection, run.id, now)
    was_missed = is_duplicate and bool(waiting.commands or waiting.withdrawn)
    is_urgent = bool(waiting.fresh) or is_news or was_missed
    return Exchanged(is_duplicate, commands.deliver(connection, waiting, now), is_urgent)


def deliver(connection: Connection, name: str, session: str, now: datetime) -> Waiting:
    """What waits for the run; its commands count as delivered from now on, to the process of ``session``."""
    run = hold(connection, name)
    waiting = commands.waiting(connection, run.id, now)
    facts = Facts.model_validate_json(run.facts)
    if facts.note_withdrawals(_life_of(session), waiting.withdrawn):
        judging.store_facts(connection, run, facts)
    return commands.deliver(connection, waiting, now)


def look(connection: Connection, name: str, now: datetime, settings: Settings) -> None:
    """Judge a run by the time that has passed."""
    run = hold(connection, name)
    judging.settle(connection, run, Facts.model_validate_json(run.facts), now, settings)


def hold(connection: Connection, name: str) -> Row[Any]:
    """The run's row, which no other writer touches until this transaction ends. Raises NotFound."""
    row: Row[Any] | None = _RUN.first(connection, run=name)
    if row is None:
        raise NotFound.run(name)
    return row


def _is_known(connection: Connection, run: Row[Any], incoming: Incoming) -> bool:
    batch = incoming.batch
    digest = ledger.digest_of(connection, run.id, batch.session, batch.seq)
    if digest is not None and digest != incoming.digest:
        raise Conflict(
            f"run {run.name!r} session {batch.session!r} sent another batch with seq {batch.seq} before; "
            "number each batch once"
        )
    return digest is not None


def _refuse_strangers(connection: Connection, run: Row[Any], batch: Batch) -> None:
    """An attempt belongs to the process that told of it first, and to whoever delivers what that one left."""
    begun = {event.attempt for event in batch.events if isinstance(event, AttemptStarted)}
    for number in sorted({batch.attempt} | begun):
        attempt = _ATTEMPT.first(connection, run=run.id, number=number)
        if attempt is not None and attempt.session not in (None, _life_of(batch.session)):
            raise AttemptTaken(run.name, number, batch.session, attempt.session)


def _life_of(session: str) -> str:
    """The process whose reports these are: what it left may come in parts, ``LIFE/PART``."""
    return session.partition("/")[0]


def _store(connection: Connection, run: Row[Any], incoming: Incoming, now: datetime) -> None:
    batch = incoming.batch
    key = {"run_id": run.id, "session": batch.session, "seq": batch.seq, "attempt": batch.attempt}
    steps = batch.columns.step
    row = {
        **key,
        "received_at": now,
        "digest": incoming.digest,
        "outbox": batch.outbox.model_dump_json(),
        "num_steps": len(steps),
        "first_step": steps[0] if steps else None,
        "last_step": steps[-1] if steps else None,
        "codec": series.CODEC_ZSTD if steps else None,
        "payload": incoming.payload,
    }
    _BATCH.change(connection, **row)
    told = [
        {**key, "idx": idx, "received_at": now, **_event_row(event)} for idx, event in enumerate(batch.events)
    ]
    if told:
        connection.execute(insert(tables.events), told)
    _note_attempts(connection, run.id, batch, now)
    _note_series(connection, run, batch.columns)


def _event_row(event: AnyEvent) -> dict[str, Any]:
    return {
        "step": event.step,
        "time": event.time,
        "type": event.type[:100],
        "severity": event.severity if isinstance(event, Finding) else None,
        "data": pictures.without_png(event).model_dump_json(),
    }


def _note_attempts(connection: Connection, run_id: int, batch: Batch, now: datetime) -> None:
    if batch.columns.step:
        _note_attempt(connection, run_id, batch.attempt, batch.session, batch.columns.step[0], now)
    for event in batch.events:
        if isinstance(event, AttemptStarted):
            _announce_attempt(connection, run_id, batch.session, event)


def _note_attempt(
    connection: Connection, run_id: int, attempt: int, session: str, step: int, now: datetime
) -> None:
    """Steps of an attempt came: until it is announced it begins at the least of them."""
    row = _ATTEMPT.first(connection, run=run_id, number=attempt)
    if row is None:
        key = {"run_id": run_id, "attempt": attempt}
        first = {"start_step": step, "is_announced": False, "started_at": now, "session": _life_of(session)}
        connection.execute(insert(tables.attempts).values({**key, **first}))
    elif not row.is_announced and step < row.start_step:
        known = tables.attempts.c
        is_it = (known.run_id == run_id) & (known.attempt == attempt)
        connection.execute(update(tables.attempts).where(is_it).values(start_step=step))


def _announce_attempt(connection: Connection, run_id: int, session: str, event: AttemptStarted) -> None:
    _note_attempt(connection, run_id, event.attempt, session, event.step, event.time)
    connection.execute(
        update(tables.attempts)
        .where(tables.attempts.c.run_id == run_id, tables.attempts.c.attempt == event.attempt)
        .values(
            start_step=event.step,
            is_announced=True,
            reason=event.reason,
            checkpoint=event.checkpoint,
            started_at=event.time,
        )
    )


def _note_series(connection: Connection, run: Row[Any], columns: Columns) -> None:
    known = _names_in(run.series_names)
    if not known.issuperset(columns.series):
        names = json.dumps(sorted(known.union(columns.series)))
        connection.execute(update(tables.runs).where(tables.runs.c.id == run.id).values(series_names=names))


@lru_cache(maxsize=128)
def _names_in(text: str) -> frozenset[str]:
    """The same list comes with every batch of a run."""
    return frozenset(json.loads(text))


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
