"""Reads the points of stored series: from blocks, and from the batches that are not compacted yet."""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Connection, Row, select

from monitor_service import blocks, series, tables
from monitor_service.blocks import HEADER, Headers
from monitor_service.errors import NotFound, wrong_query
from monitor_service.rows import Points, Rows, chain, merge
from monitor_service.series import Buckets, Stretch

EFFECTIVE, ALL = "effective", "all"


def read(
    connection: Connection,
    run: Row[Any],
    names: Sequence[str],
    attempt: str,
    from_step: int | None,
    to_step: int | None,
) -> dict[str, Points]:
    """Points of each series in ``names``, sorted by step (by attempt first, with ``all``).

    Of a stretch whose points are no longer kept (only buckets are) there are none.

    Args:
        attempt: ``effective`` (without abandoned steps), ``all``, or one attempt's number.
        from_step, to_step: both included.

    Raises:
        NotFound: the run never sent one of the series.
        InvalidMessage: ``attempt`` is something else.
    """
    _refuse_unknown(run, names)
    parts: dict[str, list[Points]] = {name: [] for name in names}
    for stretch in _stretches(connection, run.id, attempt, from_step, to_step):
        stored = _Stored(connection, run.id, names, stretch)
        rows = merge([*stored.load(stored.touched()), *stored.batches()]).within(stretch.first, stretch.last)
        for name in names:
            parts[name].append(rows.points(name, stretch.attempt))
    return {name: chain(some) for name, some in parts.items()}


def gather(
    connection: Connection,
    run: Row[Any],
    names: Sequence[str],
    buckets: int,
    attempt: str,
    from_step: int | None,
    to_step: int | None,
) -> dict[str, Buckets]:
    """Each series as at most ``buckets`` ranges of steps; arguments and errors as of ``read``.

    Blocks that fit into one range are told by their headers; only the others are unpacked.
    """
    outline = Outline.read(connection, run, names, attempt, from_step, to_step)
    told = outline.told(_width(outline.ends, buckets))
    return {name: series.gather(headers, single, buckets) for name, (headers, single) in told.items()}


def _refuse_unknown(run: Row[Any], names: Sequence[str]) -> None:
    known = json.loads(run.series_names)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise NotFound.series(run.name, unknown, known)


def _number(attempt: str) -> int | None:
    if attempt in (EFFECTIVE, ALL):
        return None
    if not (attempt.isascii() and attempt.isdigit() and len(attempt) <= 18):
        raise wrong_query("attempt", attempt, "say 'effective', 'all' or the number of an attempt")
    return int(attempt)


def _stretches(
    connection: Connection, run_id: int, attempt: str, from_step: int | None, to_step: int | None
) -> list[Stretch]:
    """What to read of which attempt, cut to the range asked for, in the order of steps (or of attempts)."""
    number, known = _number(attempt), tables.attempts.c
    query = select(known.attempt, known.start_step).where(known.run_id == run_id)
    starts = [(row.attempt, row.start_step) for row in connection.execute(query.order_by(known.attempt))]
    if attempt == EFFECTIVE:
        found = series.effective_stretches(starts)
    else:
        found = [Stretch(one, 0, None) for one, _ in starts if number in (None, one)]
    cut = [_cut(stretch, from_step, to_step) for stretch in found]
    return [stretch for stretch in cut if stretch.last is None or stretch.first <= stretch.last]


def _cut(stretch: Stretch, from_step: int | None, to_step: int | None) -> Stretch:
    lasts = [step for step in (stretch.last, to_step) if step is not None]
    return Stretch(stretch.attempt, max(stretch.first, from_step or 0), min(lasts, default=None))


@dataclass(frozen=True)
class _Stored:
    """What is stored of some series in one stretch."""

    connection: Connection
    run_id: int
    names: Sequence[str]
    stretch: Stretch

    def batches(self) -> list[Rows]:
        """Batches that are not compacted yet."""
        known = tables.batches.c
        query = select(known.session, known.seq, known.payload).where(
            *self._touching(known), known.payload.is_not(None)
        )
        found = [series.unpack(row.payload, row.session, row.seq, self.names) for row in self._all(query)]
        return [rows.within(self.stretch.first, self.stretch.last) for rows in found]

    def touched(self) -> Sequence[Row[Any]]:
        """Blocks that touch the stretch, by step."""
        known = tables.blocks.c
        query = select(known.id, known.first_step, known.last_step, known.axis.is_not(None).label("is_kept"))
        return self._all(query.where(*self._touching(known)).order_by(known.first_step))

    def load(self, some: Iterable[Row[Any]]) -> list[Rows]:
        """The rows of these blocks; blocks of which only the headers are kept have none."""
        axes, packed = self._payloads([block.id for block in some if block.is_kept])
        return [blocks.with_chunks(blocks.unpack_axis(axes[id_]), packed[id_]) for id_ in axes]

    def headers(self) -> dict[str, dict[int, bytes]]:
        """The header of each chunk, by series and block."""
        known = tables.chunks.c
        query = (
            select(tables.series.c.name, known.block_id, known.header)
            .join_from(tables.blocks, tables.chunks, known.block_id == tables.blocks.c.id)
            .join(tables.series, tables.series.c.id == known.series_id)
            .where(*self._touching(tables.blocks.c), *self._named())
        )
        found: dict[str, dict[int, bytes]] = {name: {} for name in self.names}
        for row in self._all(query):
            found[row.name][row.block_id] = row.header
        return found

    def _payloads(self, ids: Sequence[int]) -> tuple[dict[int, bytes], dict[int, dict[str, bytes]]]:
        axes: dict[int, bytes] = {}
        packed: dict[int, dict[str, bytes]] = {id_: {} for id_ in ids}
        known = tables.chunks.c
        for begin in range(0, len(ids), 500):
            some = ids[begin : begin + 500]
            query = select(tables.blocks.c.id, tables.blocks.c.axis).where(tables.blocks.c.id.in_(some))
            axes.update({row.id: row.axis for row in self._all(query) if row.axis is not None})
            chunks = (
                select(known.block_id, tables.series.c.name, known.payload)
                .join(tables.series, tables.series.c.id == known.series_id)
                .where(known.block_id.in_(some), *self._named())
            )
            for row in self._all(chunks):
                packed[row.block_id][row.name] = row.payload
        return axes, packed

    def _named(self) -> list[ColumnElement[bool]]:
        return [tables.series.c.run_id == self.run_id, tables.series.c.name.in_(self.names)]

    def _touching(self, known: Any) -> Iterator[ColumnElement[bool]]:
        """Conditions on ``batches`` or ``blocks``."""
        yield known.run_id == self.run_id
        yield known.attempt == self.stretch.attempt
        yield known.last_step >= self.stretch.first
        if self.stretch.last is not None:
            yield known.first_step <= self.stretch.last

    def _all(self, query: Any) -> Sequence[Row[Any]]:
        return self.connection.execute(query).all()


@dataclass(frozen=True)
class _Look:
    """A stretch before it is decided which of its blocks are unpacked."""

    stored: _Stored
    blocks: Sequence[Row[Any]]
    tail: Rows
    headers: dict[str, dict[int, bytes]]

    def ends(self, name: str) -> tuple[int, int] | None:
        """First and last step of a series; a block that the stretch cuts counts up to the cut."""
        stretch = self.stored.stretch
        headers = _as_array(self.headers[name].values())
        steps = self.tail.points(name, 0).step
        if not len(headers) and not len(steps):
            return None
        first = min([*headers["first_step"].tolist(), *steps[:1].tolist()])
        last = max([*headers["last_step"].tolist(), *steps[-1:].tolist()])
        return max(first, stretch.first), last if stretch.last is None else min(last, stretch.last)

    def whole(self, name: str, without: Collection[int]) -> Headers:
        """The headers of a series' chunks, but for those of some blocks."""
        return _as_array([header for id_, header in self.headers[name].items() if id_ not in without])

    def unpacked(self, width: int) -> tuple[Rows, Collection[int]]:
        """The rows that are told one by one, and the blocks that some of them are from."""
        stretch = self.stored.stretch
        some = [block for block in self.blocks if self._must_unpack(block, width)]
        rows = merge([*self.stored.load(some), self.tail]).within(stretch.first, stretch.last)
        return rows, {block.id for block in some}

    def _must_unpack(self, block: Row[Any], width: int) -> bool:
        """It is wider than a range, cut by the stretch, or mixed with batches that came late."""
        if not block.is_kept:
            return False
        stretch, tail = self.stored.stretch, self.tail.step
        if block.last_step - block.first_step + 1 > width or block.first_step < stretch.first:
            return True
        if stretch.last is not None and block.last_step > stretch.last:
            return True
        if not len(tail) or block.last_step < tail[0]:
            return False
        begin, end = np.searchsorted(tail, [block.first_step, block.last_step + 1])
        return bool(begin < end)


@dataclass(frozen=True)
class Outline:
    """What is stored of some series of one run, before it is decided which blocks are unpacked."""

    names: Sequence[str]
    _looks: Sequence[_Look]

    @classmethod
    def read(
        cls,
        connection: Connection,
        run: Row[Any],
        names: Sequence[str],
        attempt: str = EFFECTIVE,
        from_step: int | None = None,
        to_step: int | None = None,
    ) -> "Outline":
        """Headers, and batches that are not compacted yet; arguments and errors as of ``read`` above."""
        _refuse_unknown(run, names)
        looks = []
        for stretch in _stretches(connection, run.id, attempt, from_step, to_step):
            stored = _Stored(connection, run.id, names, stretch)
            looks.append(_Look(stored, stored.touched(), merge(stored.batches()), stored.headers()))
        return cls(names, looks)

    @property
    def ends(self) -> tuple[int, int] | None:
        """First and last step of all the series together."""
        found = [look.ends(name) for look in self._looks for name in self.names]
        known = [one for one in found if one is not None]
        return (min(first for first, _ in known), max(last for _, last in known)) if known else None

    def told(self, width: int) -> dict[str, tuple[Headers, Points]]:
        """Of each series: the headers of blocks of at most ``width`` steps, and the points of the others."""
        headers: dict[str, list[Headers]] = {name: [np.empty(0, HEADER)] for name in self.names}
        single: dict[str, list[Points]] = {name: [] for name in self.names}
        for look in self._looks:
            rows, ids = look.unpacked(width)
            for name in self.names:
                headers[name].append(look.whole(name, ids))
                single[name].append(rows.points(name, look.stored.stretch.attempt))
        return {name: (np.concatenate(headers[name]), chain(single[name])) for name in self.names}


def _as_array(headers: Iterable[bytes]) -> Headers:
    return np.frombuffer(b"".join(headers), HEADER)


def _width(ends: tuple[int, int] | None, buckets: int) -> int:
    """Steps in a range, over all that was asked for."""
    return 1 if ends is None else -(-(ends[1] - ends[0] + 1) // buckets)
