"""What is stored of some series in one stretch of steps: blocks, headers, batches that wait."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Connection, Row, Select, bindparam, select

from monitor_service import blocks, series, tables
from monitor_service.blocks import HEADER, Headers
from monitor_service.prepared import Prepared
from monitor_service.rows import Bools, Ints, Rows

_BATCHES, _BLOCKS, _CHUNKS, _SERIES = (
    table.c for table in (tables.batches, tables.blocks, tables.chunks, tables.series)
)
_BEGINS_WITHIN = _BLOCKS.first_step.between(bindparam("first"), bindparam("last"))


def _touching(known: Any) -> Iterator[ColumnElement[bool]]:
    """Conditions on batches or blocks: something of them is between two steps."""
    yield from _of_attempt(known)
    yield known.last_step >= bindparam("first")
    yield known.first_step <= bindparam("last")


def _of_attempt(known: Any) -> Iterator[ColumnElement[bool]]:
    yield known.run_id == bindparam("run")
    yield known.attempt == bindparam("attempt")


def _chunks(column: Any) -> Select[Any]:
    """A query for a column of a series' chunks, with their block."""
    query = select(_CHUNKS.block_id, column).join_from(tables.blocks, tables.chunks)
    return query.where(_CHUNKS.series_id == bindparam("series"))


_ID = Prepared(
    select(_SERIES.id).where(_SERIES.run_id == bindparam("run"), _SERIES.name == bindparam("name"))
)
_WAITING = Prepared(
    select(_BATCHES.session, _BATCHES.seq, _BATCHES.payload).where(
        *_touching(_BATCHES), _BATCHES.payload.is_not(None)
    )
)
_KEPT = Prepared(
    select(_BLOCKS.id, _BLOCKS.first_step, _BLOCKS.last_step)
    .where(*_touching(_BLOCKS), _BLOCKS.axis.is_not(None))
    .order_by(_BLOCKS.first_step)
)
_AXES = Prepared(
    select(_BLOCKS.id, _BLOCKS.axis)
    .where(*_of_attempt(_BLOCKS), _BEGINS_WITHIN, _BLOCKS.axis.is_not(None))
    .order_by(_BLOCKS.first_step)
)
_PAYLOADS = Prepared(_chunks(_CHUNKS.payload).where(*_of_attempt(_BLOCKS), _BEGINS_WITHIN))
_HEADERS = Prepared(_chunks(_CHUNKS.header).where(*_touching(_BLOCKS)))


@dataclass(frozen=True)
class Kept:
    """Blocks whose points are kept, in the order of steps; no two of an attempt overlap."""

    id: Ints
    first_step: Ints
    last_step: Ints


@dataclass(frozen=True)
class ToldBy:
    """The headers of a series' chunks, and the blocks that these are in."""

    block: Ints
    headers: Headers


@dataclass(frozen=True)
class Stored:
    """Some series of one attempt from step ``first`` to ``last``, both included."""

    connection: Connection
    run_id: int
    numbers: Mapping[str, int]
    """Of the series in the database. One that has no block yet may have none."""
    names: Sequence[str]
    attempt: int
    first: int
    last: int

    @classmethod
    def of(cls, connection: Connection, run: Row[Any], names: Sequence[str], *span: int) -> "Stored":
        """``span`` is the attempt, the first and the last step."""
        found = {name: _ID.first(connection, run=run.id, name=name) for name in names}
        numbers = {name: row.id for name, row in found.items() if row is not None}
        return cls(connection, run.id, numbers, names, *span)

    def batches(self) -> list[Rows]:
        """Batches that are not compacted yet."""
        found = _WAITING.all(self.connection, **self._span())
        waiting = [series.unpack(row.payload, row.session, row.seq, self.names) for row in found]
        return [rows.within(self.first, self.last) for rows in waiting]

    def kept(self) -> Kept:
        """Blocks that touch the stretch. Those of which only the headers are kept are not among them."""
        found = _KEPT.columns(self.connection, **self._span())
        return Kept(*[np.array(column, np.int64) for column in found])

    def load(self, kept: Kept, wanted: Bools) -> list[Rows]:
        """The rows of those among the blocks that are wanted; neighbours are read at once."""
        edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False))
        return [
            self._unpacked(int(kept.first_step[begin]), int(kept.first_step[end - 1]))
            for begin, end in edges.reshape(-1, 2)
        ]

    def told_by(self, name: str) -> ToldBy:
        """All headers of one series that touch the stretch."""
        if name not in self.numbers:
            return ToldBy(np.empty(0, np.int64), np.empty(0, HEADER))
        found = _HEADERS.columns(self.connection, **self._span(), series=self.numbers[name])
        return ToldBy(np.array(found.block_id, np.int64), np.frombuffer(b"".join(found.header), HEADER))

    def _unpacked(self, first: int, last: int) -> Rows:
        """The rows of all blocks that begin between two steps."""
        span = self._span() | {"first": first, "last": last}
        axes = _AXES.columns(self.connection, **span)
        payloads = {}
        for name, number in self.numbers.items():
            found = _PAYLOADS.columns(self.connection, **span, series=number)
            by_block = dict(zip(found.block_id, found.payload, strict=True))
            payloads[name] = [by_block.get(id_) for id_ in axes.id]
        return blocks.unpack(axes.axis, payloads)

    def _span(self) -> dict[str, int]:
        return {"run": self.run_id, "attempt": self.attempt, "first": self.first, "last": self.last}
