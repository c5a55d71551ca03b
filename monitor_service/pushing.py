"""Pushes the monitor's alerts to Alertmanager: at once when they begin or end, every minute while they last.

Of several monitors one pushes, as long as it holds a lease; two that push at once say the same thing.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from monitor_service import lease, tables, watchdog
from monitor_service.alarms import Alarm, Key, as_alert, firing
from monitor_service.errors import StoreUnavailable
from monitor_service.health import OVER
from monitor_service.metrics import Meters
from monitor_service.settings import Settings
from monitor_service.store import Store

log = logging.getLogger(__name__)

LOOK_S = 2.0
RESEND = timedelta(minutes=1)
LASTS = timedelta(minutes=4)
"""How long Alertmanager believes what is not said again, as Prometheus has it."""

TIMEOUT_S = 10.0
LONGEST_PAUSE_S = 60.0
LEASE = "alert push"
LEASE_LENGTH = timedelta(seconds=30)


class Pusher:
    """Remembers what was pushed. ``push_once`` is for a thread of its own, one at a time."""

    def __init__(self, store: Store, settings: Settings, meters: Meters) -> None:
        self._store, self._meters = store, meters
        self._url = f"{settings.alertmanager_url.rstrip('/')}/api/v2/alerts"
        self._holder = uuid4().hex
        self._sent: dict[Key, Alarm] = {}
        self._sent_at: datetime | None = None

    def push_once(self, now: datetime) -> None:
        """Say what is new, or all of it again after a minute.

        Raises:
            httpx.HTTPError: Alertmanager did not take it; what was to be said is said the next time.
        """
        if not self._is_ours(now):
            self._sent, self._sent_at = {}, None
            return
        fires = self._firing()
        is_due = self._sent_at is None or not timedelta(0) <= now - self._sent_at < RESEND
        if fires.keys() == self._sent.keys() and not (is_due and fires):
            return
        ended = [alarm for key, alarm in self._sent.items() if key not in fires]
        told = [as_alert(alarm, now + LASTS) for alarm in fires.values()]
        told += [as_alert(alarm, now) for alarm in ended]
        self._post(told)
        self._sent, self._sent_at = fires, now

    def _is_ours(self, now: datetime) -> bool:
        return self._store.write(
            lambda connection: lease.hold(connection, LEASE, self._holder, now, LEASE_LENGTH)
        )

    def _firing(self) -> dict[Key, Alarm]:
        known = tables.runs.c
        columns = (known.project, known.name, known.status, known.status_since, known.reasons, known.facts)
        with self._store.reading() as connection:
            return firing(connection.execute(select(*columns).where(known.status.not_in(OVER))))

    def _post(self, alerts: list[Mapping[str, Any]]) -> None:
        try:
            answer = httpx.post(self._url, json=alerts, timeout=TIMEOUT_S, trust_env=False)
            answer.raise_for_status()
        except httpx.HTTPError:
            self._meters.alert_pushes.labels("failed").inc()
            raise
        self._meters.alert_pushes.labels("sent").inc()


async def keep_pushing(
    store: Store, clock: Callable[[], datetime], settings: Settings, meters: Meters
) -> None:
    """``push_once`` for ever, with growing pauses while Alertmanager is away."""
    pusher, failures = Pusher(store, settings, meters), 0
    while True:
        await asyncio.sleep(min(LOOK_S * 2**failures, LONGEST_PAUSE_S))
        try:
            await watchdog.to_its_end(lambda: pusher.push_once(clock()))
            failures = 0
        except (httpx.HTTPError, StoreUnavailable, SQLAlchemyError) as error:
            failures = min(failures + 1, 10)
            log.warning("alerts do not reach Alertmanager: %s", error)
        except Exception:
            failures = min(failures + 1, 10)
            log.exception("pushing alerts failed, the next try follows")
