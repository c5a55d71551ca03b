"""Looks at open runs again and again: silence is noticed by time alone, and so is an order that lapses."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import Connection, case, select

from monitor_service import commands, judging, runs, tables, upkeep
from monitor_service.bell import Bell
from monitor_service.facts import Facts
from monitor_service.health import OVER
from monitor_service.leading import Lead
from monitor_service.notices import Ear
from monitor_service.settings import Settings
from monitor_service.store import Store
from shared.commands import CommandState

log = logging.getLogger(__name__)

SELDOM = 10
"""A look for orders is so much rarer while PostgreSQL tells of them."""


def look_once(
    store: Store, now: datetime, settings: Settings, listening_since: datetime | None = None
) -> None:
    """Move every run whose time has come, and let orders lapse. Writes only where something is to be done.

    Args:
        listening_since: silence before this moment was the monitor's own, so runs are judged by the time
            that has passed only after ``lost_after_s`` more; without it at once.
    """
    has_listened = listening_since is None or now - listening_since > timedelta(seconds=settings.lost_after_s)
    with store.reading() as connection:
        changing = _changing(connection, now, settings) if has_listened else []
        due = commands.due(connection, now)
    for run in changing:
        store.write(partial(runs.look, name=run, now=now, settings=settings, recall=store.recall))
    if due:
        store.write(lambda connection: commands.expire(connection, due, now))


def ring_for_new_commands(store: Store, bell: Bell) -> None:
    """Wake replies for what is not delivered yet: another process or a rule ordered it, or withdrew it."""
    known, state = tables.runs.c, tables.commands.c.state
    facts = case((state == CommandState.CANCELLING, known.facts))  # read only where they are needed
    query = (
        select(known.name, tables.commands.c.id.label("command"), facts.label("facts"))
        .join(tables.commands, tables.commands.c.run_id == known.id)
        .where(state.in_((CommandState.PENDING, CommandState.CANCELLING)))
    )
    with store.reading() as connection:
        for row in connection.execute(query):
            if row.facts is None or row.command not in Facts.model_validate_json(row.facts).withdrawals:
                bell.ring(row.name)


async def keep_looking(store: Store, clock: Callable[[], datetime], settings: Settings) -> None:
    """``look_once`` for ever, in a thread of its own each time."""
    listening_since = clock()
    while True:
        await asyncio.sleep(settings.watchdog_interval_s)
        await _survive("watchdog", lambda: look_once(store, clock(), settings, listening_since))


async def keep_ringing(store: Store, bell: Bell, settings: Settings, ear: Ear) -> None:
    """``ring_for_new_commands`` for ever, while anybody waits; seldom while orders are heard of anyway."""
    while True:
        await asyncio.sleep(settings.command_poll_s * (SELDOM if ear.is_listening else 1))
        if bell.is_listened_to:
            await _survive("command poll", lambda: ring_for_new_commands(store, bell))


async def keep_leading(lead: Lead, settings: Settings) -> None:
    """Renew the lease of ``/metrics`` for ever, three times within its length."""
    while True:
        await asyncio.sleep(settings.metrics_lease_s / 3)
        await _survive("lease of /metrics", lead.renew)


async def keep_upkeep(store: Store, clock: Callable[[], datetime], settings: Settings) -> None:
    """``upkeep.keep_up`` for ever."""
    while True:
        await asyncio.sleep(settings.compact_interval_s)
        await _survive("upkeep", lambda: upkeep.keep_up(store, clock(), settings))


async def _survive(name: str, work: Callable[[], object]) -> None:
    """Whatever fails now, the next look must come: a watchdog that ended in silence would watch nothing."""
    try:
        await to_its_end(work)
    except Exception:
        log.exception("%s: this look failed, the next one follows", name)


async def to_its_end(work: Callable[[], object]) -> None:
    """Work in a thread that is waited for even when the monitor ends: it holds a connection."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        raise


def _changing(connection: Connection, now: datetime, settings: Settings) -> list[str]:
    known = tables.runs.c
    seen = (known.name, known.status, known.facts, known.rules, known.checkpoint_interval_steps)
    open_runs = connection.execute(select(*seen).where(known.status.not_in(OVER)))
    return [row.name for row in open_runs if judging.is_due(row, now, settings)]
