"""Which of several monitors on one database speaks for all of them: numbers told twice would count twice."""

import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import uuid4

from sqlalchemy import Connection, func, select

from monitor_service import lease
from monitor_service.errors import StoreUnavailable
from monitor_service.store import Store

log = logging.getLogger(__name__)

NAME = "metrics"


class Lead:
    """A lease that is renewed again and again; whoever is not heard of for its length has lost it.

    On PostgreSQL the database's clock counts, so that monitors whose clocks differ do not take it from each
    other; monitors on one SQLite file have one clock anyway.
    """

    def __init__(self, store: Store, clock: Callable[[], datetime], length_s: float) -> None:
        self._store, self._clock, self._length_s = store, clock, length_s
        self._holder = uuid4().hex
        self._until = 0.0

    @property
    def is_ours(self) -> bool:
        """Whether this process has it now; a process that was stopped for long does not believe so."""
        return time.monotonic() < self._until

    def renew(self) -> None:
        """Take the lease if it is free, or prolong it. A database that is away changes nothing."""
        asked, had = time.monotonic(), self.is_ours
        try:
            has = self._store.write(self._hold)
        except StoreUnavailable as error:
            log.warning("the lease of /metrics was not renewed: %s", error)
            return
        self._until = asked + self._length_s if has else 0.0
        if has != had:
            log.info("this monitor %s the runs' series", "tells" if has else "leaves to another")

    def let_go(self) -> None:
        """Let another have it at once: the server ends."""
        if self.is_ours:
            self._until = 0.0
            self._store.write(lambda connection: lease.let_go(connection, NAME, self._holder))

    def _hold(self, connection: Connection) -> bool:
        now = self._clock()
        if connection.dialect.name == "postgresql":
            now = connection.scalar(select(func.now())) or now
        return lease.hold(connection, NAME, self._holder, now, timedelta(seconds=self._length_s))
