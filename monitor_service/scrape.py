"""One scrape: the service's own numbers, then what is read from the database: fleet and runs."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from threading import Lock
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.openmetrics import exposition as open_metrics
from sqlalchemy import Connection, func, or_, select
from sqlalchemy.exc import SQLAlchemyError

from monitor_service import tables, tallies
from monitor_service.commands import UNANSWERED
from monitor_service.exposition import RunWriter, escaped, head
from monitor_service.health import OVER, RunStatus
from monitor_service.leading import Lead
from monitor_service.metrics import Meters
from monitor_service.run_series import Family
from monitor_service.settings import Settings
from monitor_service.store import Store
from shared.commands import CommandKind, CommandState

Labels = tuple[str, ...]

ENDED = {
    CommandState.SUCCEEDED: "applied",
    CommandState.REFUSED: "refused",
    CommandState.FAILED: "failed",
    CommandState.EXPIRED: "expired",
    CommandState.CANCELLED: "cancelled",
}
ISSUERS = {"policy": "rule", "alertmanager": "alert"}
"""Who ordered a command that no person ordered."""


def _nothing(_: object) -> None:
    return None


FLEET = {
    family.name: family
    for family in (
        Family("active_runs", "gauge", "Runs that are not over, by status.", _nothing, ("state",)),
        Family("metrics_runs_omitted", "gauge", "Runs without series here, over the limit.", _nothing),
        Family("commands_total", "counter", "Commands that ended.", _nothing, ("kind", "outcome")),
        Family("compaction_lag_seconds", "gauge", "Age of the oldest batch not compacted.", _nothing),
        Family("store_bytes", "gauge", "Size of the database.", _nothing, ("part",)),
    )
}
"""What concerns all runs together; told by the monitor that tells the runs' series."""


@dataclass
class _Found:
    """What one scrape finds in the database."""

    rows: list[Any]
    rollbacks: Mapping[int, Mapping[str, int]]
    pending: Mapping[int, Mapping[str, float]]
    fleet: dict[str, dict[Labels, float]] = field(default_factory=dict)


class Scraper:
    """Answers scrapes; one at a time is rendered, and whoever comes meanwhile gets the same bytes."""

    def __init__(self, store: Store, settings: Settings, meters: Meters, lead: Lead, clock: Any) -> None:
        self._store, self._settings, self._meters, self._lead = store, settings, meters, lead
        self._clock, self._writer, self._one_at_a_time = clock, RunWriter(), Lock()
        self._under_way: dict[bool, asyncio.Task[tuple[bytes, str]]] = {}

    async def share(self, accept: str) -> tuple[bytes, str]:
        """``answer``, rendered once for all that wait for the same form: waiting takes no thread."""
        is_open = _wants_open_metrics(accept)
        rendering = self._under_way.get(is_open)
        if rendering is None:
            rendering = asyncio.create_task(asyncio.to_thread(self.answer, accept))
            self._under_way[is_open] = rendering
            rendering.add_done_callback(lambda _: self._under_way.pop(is_open))
        return await asyncio.shield(rendering)  # one that turns away takes nothing from the others

    def answer(self, accept: str) -> tuple[bytes, str]:
        """The text and its media type: OpenMetrics for who asks for it, else Prometheus' own."""
        is_open = _wants_open_metrics(accept)
        with self._one_at_a_time:
            told = self._from_database(is_open_metrics=is_open) if self._lead.is_ours else ""
        registry = self._meters.registry
        if not is_open:
            return generate_latest(registry) + told.encode(), CONTENT_TYPE_LATEST
        own: bytes = open_metrics.generate_latest(registry)  # type: ignore[no-untyped-call]
        own = own.removesuffix(b"# EOF\n")
        return own + told.encode() + b"# EOF\n", open_metrics.CONTENT_TYPE_LATEST

    def _from_database(self, *, is_open_metrics: bool) -> str:
        """Nothing while the database is away: the service's own numbers say so then."""
        try:
            with self._store.reading() as connection:
                found = self._find(connection)
        except SQLAlchemyError:
            self._meters.store_errors.labels("scrape").inc()
            return ""
        lines = [_fleet_text(name, found.fleet[name], is_open_metrics) for name in FLEET]
        return "".join(lines) + self._writer.write(
            found.rows, found.rollbacks, found.pending, is_open_metrics=is_open_metrics
        )

    def _find(self, connection: Connection) -> _Found:
        now: datetime = self._clock()
        lingering = now - timedelta(seconds=self._settings.metrics_linger_s)
        runs = tables.runs.c
        is_shown = or_(runs.status.not_in(OVER), runs.status_since > lingering)
        columns = (runs.id, runs.name, runs.project, runs.status, runs.facts, runs.started_at)
        query = select(*columns, runs.total_steps, runs.checkpoint_interval_steps).where(is_shown)
        rows = connection.execute(query.order_by(runs.id.desc()).limit(self._settings.metrics_max_runs)).all()
        num_shown = connection.scalar(select(func.count()).select_from(tables.runs).where(is_shown)) or 0
        found = _Found(list(rows), *_commands_of(connection, {row.id for row in rows}))
        found.fleet = dict(_fleet(connection, now, num_shown - len(rows)))
        return found


def _wants_open_metrics(accept: str) -> bool:
    return "application/openmetrics-text" in accept


def _commands_of(connection: Connection, shown: set[int]) -> tuple[Any, Any]:
    """Of the runs that are shown: ended rollbacks by trigger and outcome, unanswered commands by kind."""
    rollbacks: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    pending: dict[int, dict[str, float]] = defaultdict(dict)
    known = tables.commands.c
    is_shown = known.run_id.in_(shown)
    is_rollback = is_shown & (known.kind == CommandKind.ROLL_BACK)
    for run_id, issuer, state, count in connection.execute(
        tallies.ends(known.run_id, known.issued_by, of=is_rollback)
    ):
        trigger = ISSUERS.get(issuer.partition(" (token ")[0], "operator")
        rollbacks[run_id][f"{trigger}/{ENDED[state]}"] += count
    oldest = select(known.run_id, known.kind, func.min(known.issued_at)).where(
        is_shown, known.state.in_(UNANSWERED)
    )
    for run_id, kind, since in connection.execute(oldest.group_by(known.run_id, known.kind)):
        pending[run_id][kind] = since.timestamp()
    return rollbacks, pending


def _fleet(connection: Connection, now: datetime, omitted: int) -> Iterator[tuple[str, dict[Labels, float]]]:
    runs, batches = tables.runs.c, tables.batches.c
    open_runs = select(runs.status, func.count()).where(runs.status.not_in(OVER)).group_by(runs.status)
    by_state = {row.status: row[1] for row in connection.execute(open_runs)}
    yield "active_runs", {(state,): by_state.get(state, 0) for state in RunStatus if state not in OVER}
    yield "metrics_runs_omitted", {(): omitted}
    yield "commands_total", _ended_commands(connection)
    oldest = connection.scalar(select(batches.received_at).order_by(batches.id).limit(1))
    yield "compaction_lag_seconds", {(): max((now - oldest).total_seconds(), 0.0) if oldest else 0.0}
    yield "store_bytes", {(part,): size for part, size in _sizes(connection)}


def _ended_commands(connection: Connection) -> dict[Labels, float]:
    counts = tallies.totals(connection)
    return {
        (kind, outcome): counts.get((kind, state), 0)
        for kind in CommandKind
        for state, outcome in ENDED.items()
    }


def _sizes(connection: Connection) -> Iterator[tuple[str, int]]:
    """Bytes of the database; of an SQLite file without its log, with the pages that stand free."""
    if connection.dialect.name == "postgresql":
        yield (
            "database",
            connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one(),
        )
        return
    page, pages, free = (
        connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
        for name in ("page_size", "page_count", "freelist_count")
    )
    yield "database", page * (pages - free)
    yield "free", page * free


def _fleet_text(name: str, values: Mapping[Labels, float], is_open_metrics: bool) -> str:
    family = FLEET[name]
    lines = [f"trainhealth_{name}{_braces(family.labels, key)} {value}\n" for key, value in values.items()]
    return head(family, is_open_metrics=is_open_metrics) + "".join(lines)


def _braces(names: Iterable[str], values: Labels) -> str:
    inside = ",".join(f'{name}="{escaped(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{inside}}}" if inside else ""
