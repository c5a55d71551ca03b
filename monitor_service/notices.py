"""Tells every monitor on one PostgreSQL at once that a run has a new order; its held reply then goes out.

The notice leaves with the commit of the order, so nobody hears of an order that was undone. It is a shortcut
and no promise: whoever does not hear it (the connection broke, a pooler stands between) finds the order by
looking, as on SQLite.
"""

import asyncio
import logging
from typing import Any

from sqlalchemy import Connection, Engine, func, select

from monitor_service.bell import Bell

log = logging.getLogger(__name__)

CHANNEL = "trainhealth_orders"
AGAIN_S = 1.0
"""Pause before another try to listen."""

ALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
"""A connection that only listens would not notice by itself that the other end is gone."""


def tell(connection: Connection, run: str) -> None:
    """Ring for ``run`` at every monitor on this database, once the transaction is committed."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_notify(CHANNEL, run)))


class Ear:
    """Listens on a connection of its own, and rings the bell of each run that is named there."""

    def __init__(self, engine: Engine, bell: Bell) -> None:
        self._engine, self._bell = engine, bell
        self.is_listening = False

    async def keep_listening(self) -> None:
        """For ever, on a new connection whenever one breaks. Returns at once on SQLite: it tells nothing."""
        if self._engine.driver != "psycopg":
            return
        from psycopg import Error

        is_new = True
        while True:
            try:
                await self._listen()
            except (Error, OSError) as error:
                if self.is_listening or is_new:
                    log.warning("orders are looked for, not heard of: %s", str(error).strip())
                is_new = False
            finally:
                self.is_listening = False
            await asyncio.sleep(AGAIN_S)

    async def _listen(self) -> None:
        """Until the connection breaks. Raises psycopg.Error, OSError."""
        from psycopg import AsyncConnection

        words, options = self._engine.dialect.create_connect_args(self._engine.url)
        known: dict[str, Any] = {"connect_timeout": 5, "application_name": "trainhealth orders", **ALIVE}
        async with await AsyncConnection.connect(
            *words, autocommit=True, **{**known, **options}
        ) as connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            self.is_listening = True
            async for notice in connection.notifies():
                self._bell.ring(notice.payload)
