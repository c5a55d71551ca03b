"""Compaction: batches of one attempt become blocks, without a moment in which a point is missing or double.

The work is prepared on a reading connection and carried out in one short transaction of the writer. That
transaction begins by counting up ``runs.compactions`` from the number seen before: had another process
compacted this run in between, nothing would change. Killed at any point, all of it happened or nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import Connection, delete, func, insert, select, update

from monitor_service import blocks, ledger, series, tables
from monitor_service.ledger import Entry
from monitor_service.rows import Rows, merge, split
from monitor_service.store import Store

BLOCK_ROWS = 1000
OPEN_ROWS = BLOCK_ROWS // 2
"""A block with fewer rows takes in what follows it."""

DUE_BATCHES = 1000
"""So many batches are compacted however few steps they hold: most of them are heartbeats."""

PASS_ROWS = 20_000
PASS_BYTES = 8 * 1024 * 1024
PASS_BATCHES = 4096
"""One pass takes this much at most, and always one batch: so memory and the writer's time are bounded."""


@dataclass(frozen=True)
class Group:
    """Batches of one attempt that wait for compaction."""

    run_id: int
    attempt: int


@dataclass(frozen=True)
class NewBlock:
    """A block as it will be stored."""

    first_step: int
    last_step: int
    num_rows: int
    axis: bytes
    chunks: Mapping[str, tuple[bytes, bytes]]

    @classmethod
    def of(cls, rows: Rows) -> "NewBlock":
        ends = int(rows.step[0]), int(rows.step[-1])
        return cls(*ends, len(rows), blocks.pack_axis(rows), blocks.chunks_of(rows))


@dataclass(frozen=True)
class Plan:
    """What one pass takes away and puts in its place."""

    group: Group
    compactions: int
    batch_ids: list[int]
    entries: dict[str, dict[int, Entry]]
    """By session and seq."""
    replaced: list[int]
    """Ids of blocks that are taken in."""
    new: list[NewBlock]
    received_at: datetime


def due(connection: Connection, now: datetime, idle_after: timedelta) -> list[Group]:
    """Groups with enough steps or batches, and those to which nothing was added for ``idle_after``."""
    known = tables.batches.c
    steps, count, newest = func.sum(known.num_steps), func.count(), func.max(known.id)
    waiting = connection.execute(
        select(
            known.run_id, known.attempt, steps.label("steps"), count.label("batches"), newest.label("newest")
        )
        .group_by(known.run_id, known.attempt)
        .order_by(known.run_id, known.attempt)
    ).all()
    is_idle = _idle(connection, [row.newest for row in waiting], now - idle_after)
    return [
        Group(row.run_id, row.attempt)
        for row in waiting
        if row.steps >= BLOCK_ROWS or row.batches >= DUE_BATCHES or row.newest in is_idle
    ]


def _idle(connection: Connection, ids: Sequence[int], before: datetime) -> set[int]:
    """Batches among these that were received before a moment."""
    known, found = tables.batches.c, set[int]()
    for some in _slices(ids):
        query = select(known.id).where(known.id.in_(some), known.received_at <= before)
        found.update(connection.scalars(query))
    return found


def compact(store: Store, group: Group) -> int:
    """One pass over a group; returns how many batches it took, 0 if another process was first."""
    with store.reading() as connection:
        plan = prepare(connection, group)
    if plan is None:
        return 0
    return store.write(lambda connection: carry_out(connection, plan))


def prepare(connection: Connection, group: Group) -> Plan | None:
    """What one pass would do; ``None`` if no batch waits."""
    compactions = connection.scalar(select(tables.runs.c.compactions).where(tables.runs.c.id == group.run_id))
    taken = _take(connection, group)
    if compactions is None or not taken:
        return None
    entries: dict[str, dict[int, Entry]] = {}
    for row in taken:
        entries.setdefault(row.session, {})[row.seq] = Entry(row.digest, row.outbox, row.received_at)
    arrived = merge([series.unpack(row.payload, row.session, row.seq) for row in taken if row.payload])
    replaced, new = _place(connection, group, arrived) if len(arrived) else ([], [])
    received_at = max(row.received_at for row in taken)
    return Plan(group, compactions, [row.id for row in taken], entries, replaced, new, received_at)


def carry_out(connection: Connection, plan: Plan) -> int:
    """Do what was prepared, in the caller's transaction; returns how many batches it took."""
    runs, run_id = tables.runs.c, plan.group.run_id
    moved = connection.execute(
        update(tables.runs)
        .where(runs.id == run_id, runs.compactions == plan.compactions)
        .values(compactions=plan.compactions + 1)
    )
    if moved.rowcount == 0:
        return 0
    for some in _slices(plan.replaced):
        connection.execute(delete(tables.blocks).where(tables.blocks.c.id.in_(some)))
    ids = _series_ids(connection, run_id, {name for block in plan.new for name in block.chunks})
    for block in plan.new:
        _insert(connection, plan, block, ids)
    for session, entries in plan.entries.items():
        ledger.write_down(connection, run_id, session, entries)
    _delete_batches(connection, plan.batch_ids)
    return len(plan.batch_ids)


def _take(connection: Connection, group: Group) -> Sequence[Any]:
    """The batches of this pass, oldest first."""
    known = tables.batches.c
    sizes = connection.execute(
        select(known.id, known.num_steps, func.length(known.payload).label("size"))
        .where(known.run_id == group.run_id, known.attempt == group.attempt)
        .order_by(known.id)
        .limit(PASS_BATCHES)
    )
    ids: list[int] = []
    rows = size = 0
    for row in sizes:
        rows, size = rows + row.num_steps, size + (row.size or 0)
        if ids and (rows > PASS_ROWS or size > PASS_BYTES):
            break
        ids.append(row.id)
    if not ids:
        return []
    wanted = select(tables.batches).where(
        known.run_id == group.run_id, known.attempt == group.attempt, known.id.between(ids[0], ids[-1])
    )
    return connection.execute(wanted.order_by(known.id)).all()


def _place(connection: Connection, group: Group, arrived: Rows) -> tuple[list[int], list[NewBlock]]:
    """Which blocks take in what arrived, and the blocks that stand there afterwards."""
    near = _near(connection, group, int(arrived.step[0]), int(arrived.step[-1]))
    replaced: list[int] = []
    new: list[NewBlock] = []
    for ids, rows in _gathered(near, arrived):
        old = [_load(connection, id_) for id_ in ids]
        replaced += ids
        new += [NewBlock.of(piece) for piece in split(merge([*old, rows]), BLOCK_ROWS) if len(piece)]
    return replaced, new


def _near(connection: Connection, group: Group, first: int, last: int) -> list[Any]:
    """Blocks that can take rows in, of the range and the one before it, by step."""
    known = tables.blocks.c
    own = select(known.id, known.first_step, known.last_step, known.num_rows).where(
        known.run_id == group.run_id, known.attempt == group.attempt, known.axis.is_not(None)
    )
    inside = connection.execute(
        own.where(known.first_step.between(first, last)).order_by(known.first_step)
    ).all()
    before = connection.execute(
        own.where(known.first_step < first).order_by(known.first_step.desc()).limit(1)
    ).all()
    return [*before, *inside]


def _gathered(near: Sequence[Any], arrived: Rows) -> Iterator[tuple[list[int], Rows]]:
    """Rows that go together, and the block that they go into, if any; a block that none reach stays as it is.

    A row within a block's range belongs to it. A row between two blocks goes into the one before if that is
    still open, and otherwise makes a new one with its like.
    """
    starts = np.array([block.first_step for block in near], np.int64)
    place = np.searchsorted(starts, arrived.step, side="right") - 1
    edges = np.flatnonzero(np.diff(place, prepend=-2))
    for begin, end in zip(edges, [*edges[1:], len(arrived)], strict=True):
        rows, number = arrived.take(slice(begin, end)), int(place[begin])
        if number < 0:
            yield [], rows
            continue
        block = near[number]
        is_inside = rows.step <= block.last_step
        if block.num_rows < OPEN_ROWS or is_inside.all():
            yield [block.id], rows
            continue
        if is_inside.any():
            yield [block.id], rows.take(is_inside)
        yield [], rows.take(~is_inside)


def _load(connection: Connection, block_id: int) -> Rows:
    """A block with all its series."""
    axis = connection.scalar(select(tables.blocks.c.axis).where(tables.blocks.c.id == block_id))
    known = tables.chunks.c
    rows = connection.execute(
        select(tables.series.c.name, known.payload)
        .join(tables.series, tables.series.c.id == known.series_id)
        .where(known.block_id == block_id)
    )
    if axis is None:  # gone meanwhile: then the run's compactions have counted on, and nothing is carried out
        return merge([])
    return blocks.unpack([axis], {row.name: [row.payload] for row in rows})


def _series_ids(connection: Connection, run_id: int, names: set[str]) -> dict[str, int]:
    known = tables.series.c
    found = {
        row.name: row.id
        for row in connection.execute(select(known.name, known.id).where(known.run_id == run_id))
    }
    for name in sorted(names - found.keys()):
        new = insert(tables.series).values(run_id=run_id, name=name).returning(known.id)
        found[name] = connection.execute(new).scalar_one()
    return found


def _insert(connection: Connection, plan: Plan, new: NewBlock, series_ids: Mapping[str, int]) -> None:
    block = {
        "run_id": plan.group.run_id,
        "attempt": plan.group.attempt,
        "first_step": new.first_step,
        "last_step": new.last_step,
        "num_rows": new.num_rows,
        "received_at": plan.received_at,
        "codec": blocks.CODEC,
        "axis": new.axis,
    }
    block_id = connection.execute(
        insert(tables.blocks).values(block).returning(tables.blocks.c.id)
    ).scalar_one()
    packed = [
        {"block_id": block_id, "series_id": series_ids[name], "header": header, "payload": payload}
        for name, (header, payload) in new.chunks.items()
    ]
    connection.execute(insert(tables.chunks), packed)


def _delete_batches(connection: Connection, ids: Sequence[int]) -> None:
    for some in _slices(ids):
        connection.execute(delete(tables.batches).where(tables.batches.c.id.in_(some)))


def _slices(ids: Sequence[int], size: int = 500) -> Iterator[Sequence[int]]:
    """A statement has a limited number of parameters."""
    for begin in range(0, len(ids), size):
        yield ids[begin : begin + size]
