"""Batches as they arrive: made ready outside of the writer, told from those that are known, written down."""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, Table, and_, bindparam, insert, select, update

from monitor_service import commands, ledger, pictures, series, tables
from monitor_service.errors import AttemptTaken, Conflict
from monitor_service.prepared import Prepared
from shared.events import AnyEvent, AttemptStarted, Finding
from shared.exchange import Batch, Columns

_RUN, _NUMBER = bindparam("run", type_=BigInteger), bindparam("number", type_=BigInteger)
_OWN = tables.attempts.c
_ABOUT = (_OWN.start_step, _OWN.is_announced, _OWN.session)
_IS_IT = and_(_OWN.run_id == _RUN, _OWN.attempt == _NUMBER)

_BEFORE = Prepared(
    select(*ledger.DIGESTS, commands.IS_ANY_WAITING, *_ABOUT)
    .select_from(tables.runs.outerjoin(tables.attempts, _IS_IT))
    .where(tables.runs.c.id == _RUN)
)
_ONE_ATTEMPT = Prepared(select(*_ABOUT).where(_IS_IT))


def _new_row(table: Table) -> Prepared:
    names = [column.name for column in table.c if column.name != "id"]
    return Prepared(insert(table).values({name: bindparam(name) for name in names}))


_BATCH, _EVENT = _new_row(tables.batches), _new_row(tables.events)


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


def before(connection: Connection, run: Row[Any], batch: Batch) -> Any:
    """What is known already that concerns this batch: its digest, its attempt, and whether orders wait.

    Asked after the run's row is held: what another monitor wrote before that is seen.
    """
    return _BEFORE.first(connection, run=run.id, session=batch.session, seq=batch.seq, number=batch.attempt)


def is_known(run: Row[Any], incoming: Incoming, known: Any) -> bool:
    """Whether the batch came before. Raises Conflict: another one came with its number."""
    digest = bytes(known.waiting or known.compacted or b"")
    batch = incoming.batch
    if digest and digest != incoming.digest:
        raise Conflict(
            f"run {run.name!r} session {batch.session!r} sent another batch with seq {batch.seq} before; "
            "number each batch once"
        )
    return bool(digest)


def refuse_strangers(connection: Connection, run: Row[Any], batch: Batch, known: Any) -> None:
    """An attempt belongs to the process that told of it first, and to whoever delivers what that one left.

    Raises:
        AttemptTaken: it is another's.
    """
    owners = {batch.attempt: known.session}
    for event in batch.events:
        if isinstance(event, AttemptStarted) and event.attempt not in owners:
            other = _ONE_ATTEMPT.first(connection, run=run.id, number=event.attempt)
            owners[event.attempt] = other and other.session
    for number, owner in sorted(owners.items()):
        if owner not in (None, life_of(batch.session)):
            raise AttemptTaken(run.name, number, batch.session, owner)


def life_of(session: str) -> str:
    """The process whose reports these are: what it left may come in parts, ``LIFE/PART``."""
    return session.partition("/")[0]


def write_down(connection: Connection, run: Row[Any], incoming: Incoming, known: Any, now: datetime) -> None:
    """The batch itself, its events, the attempts that it tells of, and the names of its series."""
    batch = incoming.batch
    key = {"run_id": run.id, "session": batch.session, "seq": batch.seq, "attempt": batch.attempt}
    steps = batch.columns.step
    _BATCH.change(
        connection,
        **key,
        received_at=now,
        digest=incoming.digest,
        outbox=batch.outbox.model_dump_json(),
        num_steps=len(steps),
        first_step=steps[0] if steps else None,
        last_step=steps[-1] if steps else None,
        codec=series.CODEC_ZSTD if steps else None,
        payload=incoming.payload,
    )
    if batch.events:
        told = enumerate(batch.events)
        _EVENT.change_all(
            connection, [{**key, "idx": idx, "received_at": now, **_event_row(event)} for idx, event in told]
        )
    _note_attempts(connection, run.id, batch, known, now)
    _note_series(connection, run, batch.columns)


def _event_row(event: AnyEvent) -> dict[str, Any]:
    return {
        "step": event.step,
        "time": event.time,
        "type": event.type[:100],
        "severity": event.severity if isinstance(event, Finding) else None,
        "data": pictures.without_png(event).model_dump_json(),
    }


def _note_attempts(connection: Connection, run_id: int, batch: Batch, known: Any, now: datetime) -> None:
    if batch.columns.step:
        first = batch.columns.step[0]
        _note_attempt(connection, run_id, batch.attempt, known, batch.session, first, now)
    for event in batch.events:
        if isinstance(event, AttemptStarted):
            _announce_attempt(connection, run_id, batch.session, event)


def _note_attempt(
    connection: Connection, run_id: int, number: int, known: Any, session: str, step: int, now: datetime
) -> None:
    """Steps of an attempt came: until it is announced it begins at the least of them."""
    if known is None or known.start_step is None:
        key = {"run_id": run_id, "attempt": number}
        first = {"start_step": step, "is_announced": False, "started_at": now, "session": life_of(session)}
        connection.execute(insert(tables.attempts).values({**key, **first}))
    elif not known.is_announced and step < known.start_step:
        is_it = (_OWN.run_id == run_id) & (_OWN.attempt == number)
        connection.execute(update(tables.attempts).where(is_it).values(start_step=step))


def _announce_attempt(connection: Connection, run_id: int, session: str, event: AttemptStarted) -> None:
    known = _ONE_ATTEMPT.first(connection, run=run_id, number=event.attempt)
    _note_attempt(connection, run_id, event.attempt, known, session, event.step, event.time)
    connection.execute(
        update(tables.attempts)
        .where(_OWN.run_id == run_id, _OWN.attempt == event.attempt)
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
