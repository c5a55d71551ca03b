"""The ledger: which batches of a run were received, in ranges of numbers, with the digest of each.

A batch that came again is known by it long after its points went into blocks, and a number that never came
is a gap that can be shown.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    LargeBinary,
    String,
    bindparam,
    cast,
    delete,
    func,
    insert,
    select,
)

from monitor_service import tables

DIGEST_BYTES = 16
PAGE = 1024
"""Batches in one row at most: 16 KiB of digests."""

MAX_GAPS = 100
"""Gaps that are named for each session; the number of missing batches is always whole."""


_RUN, _SESSION = bindparam("run", type_=BigInteger), bindparam("session", type_=String)
_SEQ = bindparam("seq", type_=BigInteger)
_OFFSET = cast((_SEQ - tables.ledger.c.first_seq) * DIGEST_BYTES + 1, Integer)
DIGESTS = (
    select(tables.batches.c.digest)
    .where(
        tables.batches.c.run_id == _RUN,
        tables.batches.c.session == _SESSION,
        tables.batches.c.seq == _SEQ,
    )
    .scalar_subquery()
    .label("waiting"),
    # beyond the end of a page there are no bytes
    select(func.substr(tables.ledger.c.digests, _OFFSET, DIGEST_BYTES, type_=LargeBinary))
    .where(
        tables.ledger.c.run_id == _RUN,
        tables.ledger.c.session == _SESSION,
        tables.ledger.c.first_seq <= _SEQ,
    )
    .order_by(tables.ledger.c.first_seq.desc())
    .limit(1)
    .scalar_subquery()
    .label("compacted"),
)
"""Columns for a query with ``run``, ``session`` and ``seq``: the digest of that batch, wherever it is."""


@dataclass(frozen=True)
class Entry:
    """One batch that was received."""

    digest: bytes
    outbox: str
    received_at: datetime


@dataclass(frozen=True)
class Received:
    """What came from one session."""

    session: str
    last_seq: int
    received: int
    gaps: list[tuple[int, int]]
    """Ranges of numbers that did not come, both ends included; ``MAX_GAPS`` at most."""
    outbox: str
    received_at: datetime

    @property
    def missing(self) -> int:
        """Batches below ``last_seq`` that did not come, yet."""
        return self.last_seq - self.received


def write_down(connection: Connection, run_id: int, session: str, entries: Mapping[int, Entry]) -> None:
    """Add batches of one session by their seq; pages that they touch are written anew."""
    known = tables.ledger.c
    is_near = (
        (known.run_id == run_id)
        & (known.session == session)
        & (known.first_seq <= max(entries) + 1)
        & (known.last_seq >= min(entries) - 1)
    )
    pages = [page for page in connection.execute(select(tables.ledger).where(is_near)) if not _is_full(page)]
    all_entries = {seq: entry for page in pages for seq, entry in _entries_of(page)} | dict(entries)
    for page in pages:
        connection.execute(
            delete(tables.ledger).where(
                known.run_id == run_id, known.session == session, known.first_seq == page.first_seq
            )
        )
    rows = [
        {"run_id": run_id, "session": session, **_page_of(seqs, all_entries)} for seqs in _ranges(all_entries)
    ]
    connection.execute(insert(tables.ledger), rows)


def sessions(connection: Connection, run_id: int) -> list[Received]:
    """What came from each session of a run, the session heard last first."""
    found: dict[str, list[Any]] = {}
    batches, known = tables.batches.c, tables.ledger.c
    for query in (
        select(known.session, known.first_seq, known.last_seq, known.outbox, known.received_at).where(
            known.run_id == run_id
        ),
        select(
            batches.session,
            batches.seq.label("first_seq"),
            batches.seq.label("last_seq"),
            batches.outbox,
            batches.received_at,
        ).where(batches.run_id == run_id),
    ):
        for row in connection.execute(query):
            found.setdefault(row.session, []).append(row)
    told = [_received(session, rows) for session, rows in found.items()]
    return sorted(told, key=lambda one: (one.received_at, one.session), reverse=True)


def _received(session: str, rows: list[Any]) -> Received:
    rows.sort(key=lambda row: row.first_seq)
    gaps, received, expected = [], 0, 1
    for row in rows:
        begin = max(row.first_seq, expected)  # compacted between two queries, a batch may be told twice
        if begin > expected:
            gaps.append((expected, begin - 1))
        received += max(0, row.last_seq - begin + 1)
        expected = max(expected, row.last_seq + 1)
    newest = max(rows, key=lambda row: row.last_seq)
    received_at = max(row.received_at for row in rows)
    return Received(session, expected - 1, received, gaps[:MAX_GAPS], newest.outbox, received_at)


def _is_full(page: Any) -> bool:
    return bool(page.last_seq - page.first_seq + 1 >= PAGE)


def _entries_of(page: Any) -> Iterable[tuple[int, Entry]]:
    for place, seq in enumerate(range(page.first_seq, page.last_seq + 1)):
        digest = bytes(page.digests[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES])
        yield seq, Entry(digest, page.outbox, page.received_at)


def _ranges(seqs: Iterable[int]) -> list[list[int]]:
    """Numbers that follow each other, ``PAGE`` of them at most in each range."""
    ranges: list[list[int]] = []
    for seq in sorted(seqs):
        if ranges and ranges[-1][-1] + 1 == seq and len(ranges[-1]) < PAGE:
            ranges[-1].append(seq)
        else:
            ranges.append([seq])
    return ranges


def _page_of(seqs: Sequence[int], entries: Mapping[int, Entry]) -> dict[str, Any]:
    return {
        "first_seq": seqs[0],
        "last_seq": seqs[-1],
        "digests": b"".join(entries[seq].digest for seq in seqs),
        "outbox": entries[seqs[-1]].outbox,
        "received_at": max(entries[seq].received_at for seq in seqs),
    }
