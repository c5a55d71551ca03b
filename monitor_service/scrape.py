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
from sqlalchemy import Connection, Integer, bindparam, func, not_, or_, select
from sqlalchemy.exc import SQLAlchemyError

from monitor_service import tables, tallies
from monitor_service.commands import UNANSWERED
from monitor_service.exposition import RunWriter, escaped, head
from monitor_service.health import OVER, RunStatus
from monitor_service.leading import Lead
from monitor_service.metrics import Meters
from monitor_service.prepared import Prepared, one_of
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


_KNOWN, _COMMANDS = tables.runs.c, tables.commands.c
_IS_OVER = one_of(_KNOWN.status, OVER)
_IS_SHOWN = or_(not_(_IS_OVER), _KNOWN.status_since > bindparam("since"))
_OF_SHOWN = _COMMANDS.run_id.in_(select(_KNOWN.id).where(_IS_SHOWN))

_RUNS = Prepared(
    select(
        *(_KNOWN.id, _KNOWN.name, _KNOWN.project, _KNOWN.status, _KNOWN.facts, _KNOWN.started_at),
        *(_KNOWN.total_steps, _KNOWN.checkpoint_interval_steps),
    )
    .where(_IS_SHOWN)
    .order_by(_KNOWN.id.desc())
    .limit(bindparam("most", type_=Integer))
)
_NUM_RUNS = Prepared(select(func.count().label("count")).select_from(tables.runs).where(_IS_SHOWN))
_STATES = Prepared(
    select(_KNOWN.status, func.count().label("count")).where(not_(_IS_OVER)).group_by(_KNOWN.status)
)
_ROLLBACKS = Prepared(
    tallies.ends(
        *(_COMMANDS.run_id, _COMMANDS.issued_by), of=_OF_SHOWN & (_COMMANDS.kind == CommandKind.ROLL_BACK)
    )
)
_PENDING = Prepared(
    select(_COMMANDS.run_id, _COMMANDS.kind, func.min(_COMMANDS.issued_at).label("oldest"))
    .where(_OF_SHOWN, one_of(_COMMANDS.state, UNANSWERED))
    .group_by(_COMMANDS.run_id, _COMMANDS.kind)
)
_OLDEST = Prepared(select(tables.batches.c.received_at).order_by(tables.batches.c.id).limit(1))


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
            told = self._from_database(is_open_metrics=is_open) if self._lead.is_ours else []
        registry = self._meters.registry
        if not is_open:
            return b"".join([generate_latest(registry), *told]), CONTENT_TYPE_LATEST
        own: bytes = open_metrics.generate_latest(registry)  # type: ignore[no-untyped-call]
        end = b"# EOF\n"
        return b"".join([own.removesuffix(end), *told, end]), open_metrics.CONTENT_TYPE_LATEST

    def _from_database(self, *, is_open_metrics: bool) -> list[bytes]:
        """Nothing while the database is away: the service's own numbers say so then."""
        try:
            with self._store.reading() as connection:
                found = self._find(connection)
        except SQLAlchemyError:
            self._meters.store_errors.labels("scrape").inc()
            return []
        fleet = [_fleet_text(name, found.fleet[name], is_open_metrics) for name in FLEET]
        runs = self._writer.write(found.rows, found.rollbacks, found.pending, is_open_metrics=is_open_metrics)
        return [*fleet, *runs]

    def _find(self, connection: Connection) -> _Found:
        now: datetime = self._clock()
        since = now - timedelta(seconds=self._settings.metrics_linger_s)
        most = self._settings.metrics_max_runs
        rows = _RUNS.all(connection, since=since, most=most)
        num_shown = _NUM_RUNS.first(connection, since=since).count if len(rows) == most else len(rows)
        found = _Found(rows, _rollbacks(connection, since), _pending(connection, since))
        found.fleet = dict(_fleet(connection, now, num_shown - len(rows)))
        return found


def _wants_open_metrics(accept: str) -> bool:
    return "application/openmetrics-text" in accept


def _rollbacks(connection: Connection, since: datetime) -> dict[int, dict[str, int]]:
    """Rollbacks that have ended, by trigger and outcome, of each run that is shown."""
    found: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for run_id, issuer, state, count in _ROLLBACKS.all(connection, since=since):
        trigger = ISSUERS.get(issuer.partition(" (token ")[0], "operator")
        found[run_id][f"{trigger}/{ENDED[state]}"] += count
    return found


def _pending(connection: Connection, since: datetime) -> dict[int, dict[str, float]]:
    """When the oldest unanswered command of each kind was ordered, of each run that is shown."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for run_id, kind, oldest in _PENDING.all(connection, since=since):
        found[run_id][kind] = oldest.timestamp()
    return found


def _fleet(connection: Connection, now: datetime, omitted: int) -> Iterator[tuple[str, dict[Labels, float]]]:
    by_state = {row.status: row.count for row in _STATES.all(connection)}
    yield "active_runs", {(state,): by_state.get(state, 0) for state in RunStatus if state not in OVER}
    yield "metrics_runs_omitted", {(): omitted}
    yield "commands_total", _ended_commands(connection)
    oldest = _OLDEST.first(connection)
    lag = 0.0 if oldest is None else (now - oldest.received_at).total_seconds()
    yield "compaction_lag_seconds", {(): max(lag, 0.0)}
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


def _fleet_text(name: str, values: Mapping[Labels, float], is_open_metrics: bool) -> bytes:
    family = FLEET[name]
    lines = [f"trainhealth_{name}{_braces(family.labels, key)} {value}\n" for key, value in values.items()]
    return (head(family, is_open_metrics=is_open_metrics) + "".join(lines)).encode()


def _braces(names: Iterable[str], values: Labels) -> str:
    inside = ",".join(f'{name}="{escaped(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{inside}}}" if inside else ""
