"""What Alertmanager should hear about now, as a function of the runs' rows.

The labels are those of the Prometheus rule of that name (``deploy/prometheus``), where there is one, so that
Alertmanager makes one alert of both.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from monitor_service.concerns import Rule
from monitor_service.facts import Facts
from monitor_service.health import RunStatus
from shared.commands import CommandKind
from shared.events import Severity

CRITICAL = Severity.CRITICAL

RULE_ALERTS = {
    Rule.LOSS_RISEN: "TrainHealthLossRisen",
    Rule.NO_VALID_CHECKPOINT: "TrainHealthNoGoodCheckpoint",
    Rule.ROLLBACK_LOOP: "TrainHealthRollbackLoop",
    Rule.SPOOL_GROWING: "TrainHealthSpoolGrowing",
    Rule.REPORTS_DROPPED: "TrainHealthPointsDropped",
    Rule.SEQUENCE_GAP: "TrainHealthSeqGaps",
    Rule.COMMAND_UNANSWERED: "TrainHealthCommandUnacknowledged",
}
"""A diverged loss makes the run diverged, which has an alert already."""

STATUS_ALERTS = {
    RunStatus.DIVERGED: "TrainHealthRunDiverged",
    RunStatus.STALLED: "TrainHealthRunStalled",
    RunStatus.LOST: "TrainHealthRunLost",
}
NEEDS_PERSON = "TrainHealthNeedsPerson"
ROLL_BACK = frozenset({"TrainHealthRunDiverged"})
"""Alerts whose rule asks for a rollback, should Alertmanager send them back to the monitor."""

Key = tuple[str, str, str]
"""Alert, project and run."""


@dataclass(frozen=True)
class Alarm:
    """One alert that fires now."""

    alertname: str
    project: str
    run: str
    severity: str
    since: datetime
    words: str

    @property
    def key(self) -> Key:
        return self.alertname, self.project, self.run


def firing(rows: Iterable[Any]) -> dict[Key, Alarm]:
    """What fires about these runs."""
    return {alarm.key: alarm for row in rows for alarm in _of_run(row)}


def _of_run(row: Any) -> Iterator[Alarm]:
    judged = Facts.model_validate_json(row.facts).judged
    about = (row.project, row.name)
    if row.status in STATUS_ALERTS:
        words = "; ".join(json.loads(row.reasons))
        yield Alarm(STATUS_ALERTS[RunStatus(row.status)], *about, CRITICAL, row.status_since, words)
    for concern in judged.concerns:
        if concern.rule in RULE_ALERTS:
            name = RULE_ALERTS[concern.rule]
            yield Alarm(name, *about, concern.severity, concern.since, concern.words)
    if judged.needs_person is not None:
        yield Alarm(NEEDS_PERSON, *about, CRITICAL, row.status_since, judged.needs_person)


def as_alert(alarm: Alarm, ends_at: datetime) -> Mapping[str, Any]:
    """In the form of ``POST /api/v2/alerts``."""
    labels = {
        **{"alertname": alarm.alertname, "project": alarm.project, "run": alarm.run},
        "severity": alarm.severity,
    }
    if alarm.alertname in ROLL_BACK:
        labels["action"] = CommandKind.ROLL_BACK
    return {
        "labels": labels,
        "annotations": {"summary": f"Run {alarm.run}: {alarm.words}"},
        "startsAt": alarm.since.isoformat(),
        "endsAt": ends_at.isoformat(),
    }
