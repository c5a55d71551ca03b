"""Upkeep: packs what was received, lets go of what is older than the settings keep, gives the disk back."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import Connection, Table, delete, select, update

from monitor_service import compaction, tables, tallies
from monitor_service.health import OVER
from monitor_service.settings import StorageConfig
from monitor_service.store import Store

log = logging.getLogger(__name__)

SLICE = 200
"""Rows that leave in one transaction: others want to write, too."""

FREE_PAGES = 2000
"""Pages of an SQLite file that may stand free; those beyond go back to the disk."""

LOG_PAGES = 4096
"""Pages of an SQLite log that may stay on the disk, 16 MiB."""


@dataclass
class Done:
    """What one round of upkeep did."""

    batches: int = 0
    blocks: int = 0
    runs: int = 0


def keep_up(store: Store, now: datetime, config: StorageConfig, *, is_everything_idle: bool = False) -> Done:
    """One round.

    Args:
        is_everything_idle: compact also what was received just now.
    """
    idle_after = timedelta(0) if is_everything_idle else timedelta(seconds=config.compact_idle_s)
    done = Done(batches=_compact(store, now, idle_after))
    if config.keep_points_days is not None:
        done.blocks = _forget_points(store, now - timedelta(days=config.keep_points_days))
    _forget_alerts(store, now - timedelta(days=config.keep_alerts_days))
    if config.keep_runs_days is not None:
        done.runs = _forget_runs(store, now - timedelta(days=config.keep_runs_days))
    _give_back(store)
    return done


def _compact(store: Store, now: datetime, idle_after: timedelta) -> int:
    """Until nothing is due, or another process does it; returns how many batches were taken."""
    taken = 0
    while groups := _due(store, now, idle_after):
        some = sum(compaction.compact(store, group) for group in groups)
        if not some:
            break
        taken += some
    return taken


def _due(store: Store, now: datetime, idle_after: timedelta) -> list[compaction.Group]:
    with store.reading() as connection:
        return compaction.due(connection, now, idle_after)


def _forget_points(store: Store, before: datetime) -> int:
    """Keep only the headers of blocks received before; returns how many lost their points."""
    known, count = tables.blocks.c, 0
    query = select(known.id).where(known.axis.is_not(None), known.received_at < before).limit(SLICE)
    while ids := _ask(store, query):
        store.write(partial(_drop_points, ids=ids))
        count += len(ids)
    return count


def _drop_points(connection: Connection, ids: Sequence[int]) -> None:
    connection.execute(update(tables.chunks).where(tables.chunks.c.block_id.in_(ids)).values(payload=None))
    connection.execute(update(tables.blocks).where(tables.blocks.c.id.in_(ids)).values(axis=None))
    _count_on(connection, ids)


def _count_on(connection: Connection, ids: Sequence[int]) -> None:
    """A compaction that was prepared with these blocks must not be carried out."""
    changed = select(tables.blocks.c.run_id).where(tables.blocks.c.id.in_(ids))
    runs = tables.runs.c
    connection.execute(
        update(tables.runs).where(runs.id.in_(changed)).values(compactions=runs.compactions + 1)
    )


def _forget_alerts(store: Store, before: datetime) -> None:
    """Delete alerts that came last before."""
    known = tables.alerts.c
    while ids := _ask(store, select(known.id).where(known.last_received_at < before).limit(SLICE)):
        store.write(partial(_delete, table=tables.alerts, ids=ids))


def _forget_runs(store: Store, before: datetime) -> int:
    """Delete runs that ended before, first their blocks in slices; returns how many."""
    runs, known = tables.runs.c, tables.blocks.c
    ids = _ask(store, select(runs.id).where(runs.status.in_(OVER), runs.status_since < before))
    for run_id in ids:
        while some := _ask(store, select(known.id).where(known.run_id == run_id).limit(SLICE)):
            store.write(partial(_delete, table=tables.blocks, ids=some))
        store.write(partial(_forget_run, run_id=run_id))
        log.info("run with id %d has left: it ended before %s", run_id, before)
    return len(ids)


def _forget_run(connection: Connection, run_id: int) -> None:
    known = tables.runs.c
    if connection.scalar(select(known.id).where(known.id == run_id).with_for_update()) is not None:
        tallies.keep(connection, run_id)
        _delete(connection, tables.runs, [run_id])


def _delete(connection: Connection, table: Table, ids: Sequence[int]) -> None:
    connection.execute(delete(table).where(table.c.id.in_(ids)))


def _ask(store: Store, query: Any) -> Sequence[int]:
    with store.reading() as connection:
        return connection.scalars(query).all()


def _give_back(store: Store) -> None:
    """Shorten an SQLite file that has many free pages, and its log. PostgreSQL's autovacuum needs no help."""
    if store.engine.dialect.name != "sqlite":
        return
    with store.reading() as connection:
        free = connection.exec_driver_sql("PRAGMA freelist_count").scalar() or 0
    if free > FREE_PAGES:
        pages = min(free - FREE_PAGES, FREE_PAGES)
        # A script, since a single statement of this driver would free one page only.
        _outside_of_transactions(store, f"PRAGMA incremental_vacuum({pages})")
    _shorten_log(store)


def _shorten_log(store: Store) -> None:
    """Empty the write-ahead log once all of it is in the file: while somebody reads long, it only grows."""
    raw = store.engine.raw_connection()
    try:
        cursor = raw.cursor()
        _, pages, copied = cursor.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if pages > LOG_PAGES and pages == copied:
            cursor.execute("PRAGMA busy_timeout = 0")  # who reads just now is not waited for
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            cursor.execute("PRAGMA busy_timeout = 5000")
    finally:
        raw.close()


def vacuum(store: Store) -> None:
    """Write the database anew without its free pages; it is locked meanwhile.

    It also mends an SQLite file made before files could be shortened step by step: ``auto_vacuum`` changes
    with a whole vacuum only.

    Raises:
        OperationalError: another process uses the file.
    """
    if store.engine.dialect.name == "sqlite":
        _outside_of_transactions(store, "PRAGMA auto_vacuum = INCREMENTAL; VACUUM;")
        return
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM")


def _outside_of_transactions(store: Store, script: str) -> None:
    raw = store.engine.raw_connection()
    try:
        raw.cursor().executescript(script)
    finally:
        raw.close()
