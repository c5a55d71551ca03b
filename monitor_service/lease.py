"""A lease: of all processes on one database one holds it, until it lets go or is not heard of for a while.

Time is each process' own clock, so clocks that differ by more than the length of the lease may let two hold
it at once. It spares work that need not be done twice; what must happen once is a compare-and-set of its own.
"""

from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from monitor_service import tables


def hold(connection: Connection, name: str, holder: str, now: datetime, length: timedelta) -> bool:
    """Take the lease, or prolong it; whether ``holder`` has it from now on until ``now + length``.

    An expiry more than ``length`` ahead was written by a clock that was put back since: it does not count.
    """
    known, until = tables.leases.c, now + length
    is_free = (known.holder == holder) | (known.expires_at <= now) | (known.expires_at > until)
    taken = connection.execute(
        update(tables.leases).where(known.name == name, is_free).values(holder=holder, expires_at=until)
    )
    if taken.rowcount:
        return True
    if connection.scalar(select(known.name).where(known.name == name)) is not None:
        return False
    try:
        with connection.begin_nested():
            connection.execute(insert(tables.leases).values(name=name, holder=holder, expires_at=until))
    except IntegrityError:  # another process was first
        return False
    return True


def let_go(connection: Connection, name: str, holder: str) -> None:
    """Give the lease back, if ``holder`` has it."""
    known = tables.leases.c
    connection.execute(delete(tables.leases).where(known.name == name, known.holder == holder))


def holder_of(connection: Connection, name: str, now: datetime) -> str | None:
    """Who has the lease now."""
    known = tables.leases.c
    return connection.scalar(select(known.holder).where(known.name == name, known.expires_at > now))
