"""Builds the monitor as an ASGI app: importing this does nothing, ``create_app`` builds everything."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from monitor_service import migrate, pushing, watchdog
from monitor_service.access import Door
from monitor_service.api import (
    alerts,
    archives,
    control,
    ingest,
    pictures,
    query,
    rules,
    series,
    service,
    streams,
)
from monitor_service.api.access_log import AccessLog
from monitor_service.api.dependencies import Clock, Monitor
from monitor_service.api.guard import Guard
from monitor_service.api.openapi import describe_bodies
from monitor_service.api.problems import add_problem_handlers
from monitor_service.api.refusals import Refusals
from monitor_service.api.shortcut import Shortcut
from monitor_service.bell import Bell
from monitor_service.errors import StoreUnavailable
from monitor_service.leading import Lead
from monitor_service.metrics import Meters
from monitor_service.newsroom import Newsroom
from monitor_service.notices import Ear
from monitor_service.opening import file_of
from monitor_service.scrape import Scraper
from monitor_service.settings import Settings
from monitor_service.store import Store, open_engine
from monitor_service.web import cancelling, login, orders, pages, shell
from monitor_service.web.sparklines import Sparklines
from shared.base import utc_now


def create_app(settings: Settings, clock: Clock = utc_now) -> FastAPI:
    """The app with parts of its own; its lifespan migrates, writes, watches, and drains at the end."""
    monitor = _build(settings, clock)
    # The framework's own pages about the API load scripts from the internet.
    app = FastAPI(
        title="TrainHealth monitor",
        version="1",
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # the meters tell all of it
    )
    app.state.monitor = monitor
    app.state.sparklines = Sparklines()
    app.state.refusals = Refusals()
    for router in (
        ingest.router,
        query.router,
        series.router,
        control.router,
        alerts.router,
        rules.router,
        streams.router,
        archives.router,
        pictures.router,
        service.router,
        login.router,
        orders.router,
        cancelling.router,
        pages.router,
    ):
        app.include_router(router)
    shell.mount_static(app)
    add_problem_handlers(app, shell.error_page)
    describe_bodies(app)
    app.add_middleware(Shortcut, monitor=monitor)
    app.add_middleware(Guard, monitor=monitor, refusals=app.state.refusals)
    return app


def _build(settings: Settings, clock: Clock) -> Monitor:
    meters = Meters(CollectorRegistry())
    engine = open_engine(settings.database_url, settings.durable)
    store = Store(
        engine,
        queue_size=settings.write_queue,
        observe=meters.note_commit,
        complain=meters.store_errors.labels("commit").inc,
    )
    lead = Lead(store, clock, settings.metrics_lease_s)
    scraper = Scraper(store, settings, meters, lead, clock)
    door = Door(store, clock, is_loopback=settings.is_loopback)
    access_log = AccessLog(settings.access_log, clock)
    newsroom = Newsroom(store, settings.max_streams)
    bell = Bell()
    ear = Ear(engine, bell)
    meters.queue.set_function(lambda: store.num_waiting)
    file = file_of(settings.database_url)
    if file is not None:
        meters.watch_disk(file.parent)
    meters.leads.set_function(lambda: lead.is_ours)
    meters.hears.set_function(lambda: ear.is_listening)
    meters.waiting.labels("longpoll").set_function(lambda: bell.num_listening)
    meters.waiting.labels("sse").set_function(lambda: newsroom.num_listening)
    return Monitor(settings, clock, store, bell, meters, door, access_log, newsroom, lead, scraper, ear)


def _pushing(monitor: Monitor) -> list[asyncio.Task[None]]:
    if not monitor.settings.alertmanager_url:
        return []
    work = pushing.keep_pushing(monitor.store, monitor.clock, monitor.settings, monitor.meters)
    return [asyncio.create_task(work)]


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    monitor: Monitor = app.state.monitor
    await asyncio.to_thread(migrate.bring_up_to_date, monitor.store.engine)
    monitor.store.start()
    await asyncio.to_thread(monitor.lead.renew)
    watching = [
        asyncio.create_task(watchdog.keep_leading(monitor.lead, monitor.settings)),
        asyncio.create_task(monitor.ear.keep_listening()),
        asyncio.create_task(watchdog.keep_looking(monitor.store, monitor.clock, monitor.settings)),
        asyncio.create_task(
            watchdog.keep_ringing(monitor.store, monitor.bell, monitor.settings, monitor.ear)
        ),
        asyncio.create_task(watchdog.keep_upkeep(monitor.store, monitor.clock, monitor.settings)),
        *_pushing(monitor),
    ]
    try:
        yield
    finally:
        for task in watching:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        with suppress(StoreUnavailable):
            await asyncio.to_thread(monitor.lead.let_go)
        await asyncio.to_thread(monitor.store.close)
        monitor.access_log.close()
