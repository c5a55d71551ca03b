"""What Prometheus scrapes: the runs' numbers, read from the database each time, and the service's own."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Row, func, or_, select

from monitor_service import tables
from monitor_service.facts import GRAD_NORM, LOSS, OTHER, Facts
from monitor_service.health import OVER, RunStatus
from monitor_service.settings import Settings
from monitor_service.store import Store
from monitor_service.webhook import Result
from shared.events import CheckpointState, Severity

GUARDS = ("nonfinite", "spike", "drift", "invariants", "culprit")
"""Guards whose counters stand at 0 before they see anything: an alert on the first finding needs that."""

FINDINGS = tuple(
    f"{guard}/{s}" for guard in GUARDS for s in (Severity.WARNING, Severity.ERROR, Severity.CRITICAL)
)
SKIPS = ("nonfinite_grad", "nonfinite_loss", "spike", "overflow")
TRIGGERS = ("guard", "command")

COMMIT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Meters:
    """The service's own numbers, counted as things happen."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "trainhealth_ingest_requests",
            "Batches received, by HTTP status code.",
            ["code"],
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
        for status in ("firing", "resolved"):
            for became in Result:
                self.alert_webhooks.labels(status, became)
        for result in ("accepted", "duplicate"):
            self.points.labels(result)
        for code in ("200", "400", "404", "409", "413", "415", "422", "500", "503"):
            self.requests.labels(code)

    def note_commit(self, requests: int, seconds: float) -> None:
        self.commits.observe(seconds)
        self.commit_requests.observe(requests)


class RunCollector(Collector):
    """Series with the label ``run``, for open runs and those just ended: nothing is kept between scrapes."""

    def __init__(self, store: Store, settings: Settings, clock: Any) -> None:
        self._store, self._settings, self._clock = store, settings, clock

    def describe(self) -> Iterable[Metric]:
        return ()  # a registry asks this before the database is open

    def collect(self) -> Iterator[Metric]:
        rows, omitted = self._runs()
        families = _Families()
        for row in rows:
            families.add_run(row)
        yield from families.all()
        yield GaugeMetricFamily(
            "trainhealth_metrics_runs_omitted", "Runs without series here, over the limit of runs.", omitted
        )

    def _runs(self) -> tuple[list[Row[Any]], int]:
        now: datetime = self._clock()
        lingering = now - timedelta(seconds=self._settings.metrics_linger_s)
        runs = tables.runs.c
        is_shown = or_(runs.status.not_in(OVER), runs.status_since > lingering)
        query = select(tables.runs).where(is_shown).order_by(runs.id.desc())
        with self._store.reading() as connection:
            rows = connection.execute(query.limit(self._settings.metrics_max_runs)).all()
            count = connection.scalar(select(func.count()).select_from(tables.runs).where(is_shown)) or 0
        return list(rows), count - len(rows)


class _Families:
    """The metric families of one scrape, filled run by run."""

    def __init__(self) -> None:
        self._families: dict[str, Metric] = {}

    def all(self) -> Iterable[Metric]:
        return self._families.values()

    def add_run(self, row: Row[Any]) -> None:
        """All series of one run: those of a fresh run are there too, at 0."""
        facts, run = Facts.model_validate_json(row.facts), {"project": row.project, "run": row.name}
        self._gauge("run_info", "Text about the run.", {**run, "total_steps": str(row.total_steps or "")}, 1)
        for status in RunStatus:
            is_it = float(status == row.status)
            self._gauge("run_state", "1 for the status that the run has.", {**run, "state": status}, is_it)
        self._add_progress(run, row, facts)
        self._add_counts(run, facts)

    def _add_progress(self, run: dict[str, str], row: Row[Any], facts: Facts) -> None:
        started, seen = row.started_at.timestamp(), facts.last_seen.timestamp()
        self._gauge("run_start_timestamp_seconds", "When the run started, Unix time.", run, started)
        self._gauge("run_attempt", "1 at first, 1 more at each resume or rollback.", run, facts.attempt)
        self._gauge("last_seen_timestamp_seconds", "When anything was heard last, Unix time.", run, seen)
        at = facts.last_step_at.timestamp() if facts.last_step_at else 0.0
        self._gauge("last_step_timestamp_seconds", "When the newest step was received, 0 before.", run, at)
        good = facts.last_good.step if facts.last_good else -1
        self._gauge("checkpoint_last_good_step", "Step of the newest good checkpoint, -1 if none.", run, good)
        for name, what, value in (
            ("step", "Step of the newest attempt; goes back at a rollback.", facts.reached),
            ("step_duration_ema_seconds", "Smoothed duration of a step.", facts.step_seconds),
            ("loss", "Newest loss; may be NaN.", facts.loss),
            ("grad_norm", "Newest global gradient norm; may be NaN.", facts.grad_norm),
        ):
            if value is not None:
                self._gauge(name, what, run, value)

    def _add_counts(self, run: dict[str, str], facts: Facts) -> None:
        self._count("steps", "Steps received; never goes back.", run, facts.steps_total)
        self._count("rollback_lost_steps", "Steps undone by rollbacks.", run, facts.steps_lost)
        self._count("rollback_lost_seconds", "Time lost by rollbacks.", run, facts.seconds_lost)
        for name, what, label, known, counts in (
            ("skipped_steps", "Steps not taken.", "reason", SKIPS, facts.skipped),
            ("rollbacks", "Rollbacks carried out.", "trigger", TRIGGERS, facts.rollbacks),
            (
                "checkpoints",
                "Checkpoints that reached a state.",
                "state",
                tuple(CheckpointState),
                facts.checkpoints,
            ),
            (
                "nonfinite",
                "Values that were NaN or infinite.",
                "series",
                (LOSS, GRAD_NORM, OTHER),
                facts.nonfinite,
            ),
        ):
            for key, value in _at_least(known, counts).items():
                self._count(name, what, {**run, label: key}, value)
        for key, value in _at_least(FINDINGS, facts.findings).items():
            guard, _, severity = key.rpartition("/")
            self._count(
                "findings", "Findings of guards.", {**run, "guard": guard, "severity": severity}, value
            )

    def _gauge(self, name: str, what: str, labels: Mapping[str, str], value: float) -> None:
        self._family(GaugeMetricFamily, name, what, labels).add_metric(list(labels.values()), value)

    def _count(self, name: str, what: str, labels: Mapping[str, str], value: float) -> None:
        self._family(CounterMetricFamily, name, what, labels).add_metric(list(labels.values()), value)

    def _family(self, kind: Any, name: str, what: str, labels: Mapping[str, str]) -> Any:
        if name not in self._families:
            self._families[name] = kind(f"trainhealth_{name}", what, labels=list(labels))
        return self._families[name]


def _at_least(known: Iterable[str], counts: Mapping[str, int]) -> dict[str, int]:
    """Counts with a 0 for what is known but has not happened."""
    return {**dict.fromkeys(known, 0), **counts}
