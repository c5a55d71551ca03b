"""The service's own numbers for Prometheus, counted as things happen; the runs' series are in ``scrape``."""

import math
import platform
import shutil
from collections.abc import Iterable
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from monitor_service.journeys import Journeys
from monitor_service.webhook import Result
from shared.commands import CommandKind
from shared.events import KNOWN_EVENTS, AnyEvent

COMMIT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

QUERY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
DELIVERY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
ROLLBACK_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

TURNED_AWAY = {401: "not_authenticated", 403: "forbidden", 429: "too_many"}
"""Why, by status."""


class Meters:
    """The service's own numbers, counted as things happen."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._child = cache(lambda counter, *labels: counter.labels(*labels))
        self.requests = Counter(
            "trainhealth_ingest_requests",
            "Batches received, by HTTP status code and form.",
            ["code", "encoding"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "trainhealth_ingest_request_duration_seconds",
            "From the first byte of a batch to its commit, without the time a reply is held.",
            buckets=COMMIT_BUCKETS,
            registry=registry,
        )
        self.points = Counter(
            "trainhealth_ingest_points",
            "Values received, by what became of them.",
            ["result"],
            registry=registry,
        )
        self.commits = Histogram(
            "trainhealth_store_commit_duration_seconds",
            "One group commit.",
            buckets=COMMIT_BUCKETS,
            registry=registry,
        )
        self.commit_requests = Histogram(
            "trainhealth_store_commit_requests",
            "Requests in one group commit.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=registry,
        )
        self.alert_webhooks = Counter(
            "trainhealth_alert_webhooks",
            "Alerts received from Alertmanager, by what became of them.",
            ["status", "result"],
            registry=registry,
        )
        self.alert_pushes = Counter(
            "trainhealth_alert_push",
            "Messages to Alertmanager, by what became of them.",
            ["result"],
            registry=registry,
        )
        for pushed in ("sent", "failed"):
            self.alert_pushes.labels(pushed)
        for status in ("firing", "resolved"):
            for became in Result:
                self.alert_webhooks.labels(status, became)
        for result in ("accepted", "duplicate"):
            self.points.labels(result)
        for code in ("200", "400", "404", "409", "413", "415", "422", "500", "503"):
            self.requests.labels(code, "json")
        self._add_traffic(registry)
        self._add_commands(registry)
        self._add_state(registry)

    def _add_traffic(self, registry: CollectorRegistry) -> None:
        self.bytes = Counter(
            "trainhealth_ingest_bytes",
            "Bytes of batches, as they were received.",
            ["encoding"],
            registry=registry,
        )
        self.events = Counter(
            "trainhealth_ingest_events",
            "Events received, by type and what became of them.",
            ["type", "result"],
            registry=registry,
        )
        self.responses = Counter(
            "trainhealth_http_responses", "Answers to all requests, by status.", ["code"], registry=registry
        )
        self.query_seconds = Histogram(
            "trainhealth_query_duration_seconds",
            "Answers to questions, by route.",
            ["route"],
            buckets=QUERY_BUCKETS,
            registry=registry,
        )
        self.auth_failures = Counter(
            "trainhealth_auth_failures", "Requests turned away at the door.", ["reason"], registry=registry
        )
        for reason in TURNED_AWAY.values():
            self.auth_failures.labels(reason)

    def _add_commands(self, registry: CollectorRegistry) -> None:
        delivery = Histogram(
            "trainhealth_command_delivery_seconds",
            "From a command's order to the reply that carries it first.",
            ["kind"],
            buckets=DELIVERY_BUCKETS,
            registry=registry,
        )
        rollback = Histogram(
            "trainhealth_rollback_duration_seconds",
            "From a rollback's delivery to the first finite loss of the attempt after it.",
            buckets=ROLLBACK_BUCKETS,
            registry=registry,
        )
        for kind in CommandKind:
            delivery.labels(kind)
        self.journeys = Journeys(delivery, rollback)

    def _add_state(self, registry: CollectorRegistry) -> None:
        self.store_errors = Counter(
            "trainhealth_store_errors",
            "Times that the database could not be written or read.",
            ["operation"],
            registry=registry,
        )
        for operation in ("commit", "scrape"):
            self.store_errors.labels(operation)
        self._disk = Gauge(
            "trainhealth_store_disk_bytes",
            "The disk that an SQLite database is on, as far as this program may use it.",
            ["part"],
            registry=registry,
        )
        self.queue = Gauge(
            "trainhealth_ingest_queue_requests", "Requests that wait for the writer.", registry=registry
        )
        self.waiting = Gauge(
            "trainhealth_waiting_clients",
            "Trainers whose reply is held, and live streams.",
            ["channel"],
            registry=registry,
        )
        self.leads = Gauge(
            "trainhealth_metrics_leader", "1 if this monitor tells the runs' series.", registry=registry
        )
        self.hears = Gauge(
            "trainhealth_orders_heard",
            "1 if orders given at other monitors are heard of at once, 0 if they are looked for.",
            registry=registry,
        )
        build = Gauge("trainhealth_build_info", "What runs here.", ["version", "python"], registry=registry)
        build.labels(_version(), platform.python_version()).set(1)

    def watch_disk(self, folder: Path) -> None:
        """Tell at each scrape how much of the disk of ``folder`` is used and free."""
        for part in ("used", "free"):
            self._disk.labels(part).set_function(partial(disk_bytes, folder, part))

    def note_batch(self, status: int, form: str) -> None:
        """A batch was answered."""
        self._child(self.requests, str(status), form).inc()

    def note_size(self, form: str, size: int) -> None:
        """Bytes of a batch."""
        self._child(self.bytes, form).inc(size)

    def note_content(self, values: int, events: Iterable[AnyEvent], result: str) -> None:
        """What a batch held, and what became of it."""
        self._child(self.points, result).inc(values)
        for event in events:
            kind = event.type if event.type in KNOWN_EVENTS else "other"
            self._child(self.events, kind, result).inc()

    def note_answer(self, status: int, route: str | None, seconds: float) -> None:
        """Any answer; with a route it was a question of the API."""
        self._child(self.responses, str(status)).inc()
        if status in TURNED_AWAY:
            self.auth_failures.labels(TURNED_AWAY[status]).inc()
        if route is not None:
            self.query_seconds.labels(route).observe(seconds)

    def note_commit(self, requests: int, seconds: float) -> None:
        self.commits.observe(seconds)
        self.commit_requests.observe(requests)


def disk_bytes(folder: Path, part: str) -> float:
    """Bytes ``used`` or ``free`` of the disk that a folder is on; NaN while it cannot be asked."""
    try:
        return float(getattr(shutil.disk_usage(folder), part))
    except OSError:
        return math.nan


def _version() -> str:
    try:
        return version("trainhealth")
    except PackageNotFoundError:  # run from a folder of sources
        return "unknown"
