"""What a route may ask for: the monitor's parts, and a connection that reads."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request
from sqlalchemy import Connection

from monitor_service.access import Door
from monitor_service.api.access_log import AccessLog
from monitor_service.bell import Bell
from monitor_service.leading import Lead
from monitor_service.metrics import Meters
from monitor_service.newsroom import Newsroom
from monitor_service.notices import Ear
from monitor_service.scrape import Scraper
from monitor_service.settings import Settings
from monitor_service.store import Store

Clock = Callable[[], datetime]
"""The present moment, aware and in UTC."""


@dataclass(frozen=True)
class Monitor:
    """The parts of one running monitor; ``app.state.monitor`` holds it."""

    settings: Settings
    clock: Clock
    store: Store
    bell: Bell
    meters: Meters
    door: Door
    access_log: AccessLog
    newsroom: Newsroom
    lead: Lead
    scraper: Scraper
    ear: Ear
    long_work: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(2))
    """Threads for what takes seconds, so that it takes none from the watchdog and the short questions."""


async def get_monitor(request: Request) -> Monitor:
    monitor: Monitor = request.app.state.monitor
    return monitor


MonitorDep = Annotated[Monitor, Depends(get_monitor)]


def get_connection(monitor: MonitorDep) -> Iterator[Connection]:
    with monitor.store.reading() as connection:
        yield connection


ConnectionDep = Annotated[Connection, Depends(get_connection)]
"""For reading; a route that writes uses ``monitor.store.write``."""


async def get_settings(monitor: MonitorDep) -> Settings:
    return monitor.settings


SettingsDep = Annotated[Settings, Depends(get_settings)]


async def get_clock(monitor: MonitorDep) -> Clock:
    return monitor.clock


ClockDep = Annotated[Clock, Depends(get_clock)]
