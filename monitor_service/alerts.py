"""Alerts that others send: each kept once, and turned into a command once, however often it comes.

One alert is one episode: a fingerprint (its labels) and the moment at which it began, as the senders of one
project tell it; those of another project can neither repeat nor resolve it. The decision about an
episode is taken by its first message and stands, except where only the moment was wrong
(``webhook.OPEN_RESULTS``).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from monitor_service import commands, judging, policy, rulebook, runs, tables
from monitor_service.access import Principal
from monitor_service.errors import NotFound, StoreUnavailable
from monitor_service.facts import Facts
from monitor_service.health import OVER
from monitor_service.settings import Settings
from monitor_service.webhook import (
    OPEN_RESULTS,
    Alert,
    AlertOutcome,
    AlertPage,
    AlertsReceived,
    AlertView,
    Result,
    Webhook,
)
from shared.base import Name
from shared.commands import CommandKind, CommandRequest

ISSUER = "alertmanager"
ACTION = "action"
MAX_ENTRIES = 64
MAX_TEXT = 500
"""Labels and annotations that are kept of an alert, and characters of each."""

_NAME: TypeAdapter[str] = TypeAdapter(Name)


@dataclass(frozen=True)
class Decision:
    """What follows from an alert, in one word and in a sentence."""

    result: Result
    detail: str
    command: str | None = None


def receive(
    connection: Connection, webhook: Webhook, sender: Principal, now: datetime, settings: Settings
) -> AlertsReceived:
    """Keep every alert of the message, and order what they ask for."""
    # Runs are locked in one order, so that two messages cannot wait for each other.
    by_run = sorted(range(len(webhook.alerts)), key=lambda index: _run_of(webhook.alerts[index]) or "")
    told = {index: _take(connection, webhook.alerts[index], sender, now, settings) for index in by_run}
    return AlertsReceived(alerts=[told[index] for index in sorted(told)], truncated=webhook.truncated)


def _take(
    connection: Connection, alert: Alert, sender: Principal, now: datetime, settings: Settings
) -> AlertOutcome:
    run = _run_of(alert)
    held = _hold(connection, run, alert, sender)
    known = _known(connection, alert, sender)
    decision = _decide(connection, alert, known, held, sender, now, settings)
    is_theirs = held is not None or sender.project is None  # nobody writes into another project's list
    _keep(connection, alert, sender, known, run if is_theirs else None, decision, now)
    return AlertOutcome(
        fingerprint=alert.fingerprint,
        starts_at=alert.starts_at,
        status=alert.status,
        alertname=alert.name,
        run=run,
        **vars(decision),
    )


def _run_of(alert: Alert) -> str | None:
    """The run that the alert is about; ``None`` if it names none, or what can be no run's name."""
    try:
        return _NAME.validate_python(alert.labels.get("run"))
    except ValidationError:
        return None


def _hold(connection: Connection, run: str | None, alert: Alert, sender: Principal) -> Row[Any] | None:
    """The run's row if there is such a run, for this sender, in the project that the alert names."""
    try:
        row = None if run is None else runs.hold(connection, run)
    except NotFound:
        return None
    if row is None or not sender.sees(row.project):
        return None
    return row if alert.labels.get("project", row.project) == row.project else None


def _episode(alert: Alert, sender: Principal) -> dict[str, Any]:
    """What an alert is known by."""
    return {
        "project": sender.project or "",
        "fingerprint": alert.fingerprint,
        "starts_at": alert.starts_at,
    }


def _known(connection: Connection, alert: Alert, sender: Principal) -> Row[Any] | None:
    episode = _episode(alert, sender)
    is_it = [tables.alerts.c[name] == value for name, value in episode.items()]
    return connection.execute(select(tables.alerts).where(*is_it)).first()


def _decide(
    connection: Connection,
    alert: Alert,
    known: Row[Any] | None,
    run: Row[Any] | None,
    sender: Principal,
    now: datetime,
    settings: Settings,
) -> Decision:
    if alert.status == "resolved":
        return Decision(Result.RESOLVED, "nothing to do", known and known.command_id)
    if known is not None and known.status == "resolved":
        return Decision(Result.RESOLVED, "it was resolved before this message came", known.command_id)
    if known is not None and known.result not in OPEN_RESULTS:
        return Decision(Result.REPEATED, f"decided before: {known.result}, {known.detail}", known.command_id)
    action = alert.labels.get(ACTION)
    if action != CommandKind.ROLL_BACK:
        asks = (
            "asks for nothing" if action is None else f"asks for {action[:100]!r}, which no alert may order"
        )
        return Decision(
            Result.NOTED, f"it {asks}; the label {ACTION}={CommandKind.ROLL_BACK} orders a rollback"
        )
    if run is None:
        return Decision(Result.UNKNOWN_RUN, _unknown(alert))
    if run.status in OVER:
        return Decision(Result.RUN_OVER, f"run {run.name!r} is over ({run.status}); nobody would roll back")
    return _order(connection, alert, run, sender, now, settings)


def _unknown(alert: Alert) -> str:
    name, project = alert.labels.get("run"), alert.labels.get("project")
    if name is None:
        return "it names no run; give it the label run"
    return f"no run {name[:100]!r}" + (f" in project {project[:100]!r}" if project else "")


def _order(
    connection: Connection,
    alert: Alert,
    run: Row[Any],
    sender: Principal,
    now: datetime,
    settings: Settings,
) -> Decision:
    facts = Facts.model_validate_json(run.facts)
    before = commands.rollback_since(connection, run.id, alert.starts_at)
    if before is not None:
        return Decision(Result.COVERED, f"command {before} rolls the run back, or has done so since")
    if facts.returned_at is not None and facts.returned_at >= alert.starts_at:
        return Decision(Result.COVERED, "the run has gone back by itself since this alert began")
    hinders = policy.hindrance(facts, now, rulebook.rules_of(settings, run.rules))
    if hinders is not None:
        if hinders.needs_person:
            facts.judged.needs_person = hinders.words
            judging.store_facts(connection, run, facts)
        return Decision(Result.NOT_NOW, hinders.words)
    command = judging.order_automatically(connection, run, facts, _request(alert, sender), now)
    judging.store_facts(connection, run, facts)
    return Decision(Result.ORDERED, f"a rollback of run {run.name!r} is ordered", command.id)


def _request(alert: Alert, sender: Principal) -> CommandRequest:
    said = alert.annotations.get("summary") or alert.annotations.get("description") or "is firing"
    reason = f"{alert.name}: {' '.join(said.split())}"[:MAX_TEXT]
    return CommandRequest(kind=CommandKind.ROLL_BACK, reason=reason, issued_by=sender.signature(ISSUER))


def _keep(
    connection: Connection,
    alert: Alert,
    sender: Principal,
    known: Row[Any] | None,
    run: str | None,
    decision: Decision,
    now: datetime,
) -> None:
    stands = known is not None and decision.result in (Result.REPEATED, Result.RESOLVED)
    verdict = {} if stands else {"result": decision.result, "detail": decision.detail}
    row = {
        **verdict,
        "command_id": decision.command,
        "status": "resolved" if decision.result is Result.RESOLVED else alert.status,
        "ends_at": alert.ends_at if alert.status == "resolved" else known and known.ends_at,
        "last_received_at": now,
        "annotations": _kept(alert.annotations),
    }
    if known is not None:
        connection.execute(
            update(tables.alerts).where(tables.alerts.c.id == known.id).values(**row, times=known.times + 1)
        )
        return
    first = {"run": run, "labels": _kept(alert.labels), "first_received_at": now, "times": 1}
    try:
        with connection.begin_nested():
            connection.execute(insert(tables.alerts).values({**_episode(alert, sender), **first, **row}))
    except IntegrityError as error:  # only where the run is unknown: a known one is locked
        raise StoreUnavailable("another worker takes the same alert just now") from error


def _kept(told: Mapping[str, str]) -> str:
    return json.dumps({key[:MAX_TEXT]: told[key][:MAX_TEXT] for key in sorted(told)[:MAX_ENTRIES]})


def alerts(
    connection: Connection,
    *,
    project: str | None,
    run: str | None = None,
    status: str | None = None,
    before: int | None = None,
    limit: int = 50,
) -> AlertPage:
    """What was received, the youngest first; with a project only what is about its runs."""
    known = tables.alerts.c
    query = select(tables.alerts).order_by(known.id.desc()).limit(limit + 1)
    if project is not None:
        query = query.join(tables.runs, tables.runs.c.name == known.run).where(
            tables.runs.c.project == project
        )
    for column, value in ((known.run, run), (known.status, status)):
        if value is not None:
            query = query.where(column == value)
    if before is not None:
        query = query.where(known.id < before)
    rows = connection.execute(query).all()
    items = [_view(row) for row in rows[:limit]]
    return AlertPage(items=items, next_before=items[-1].id if len(rows) > limit else None)


def _view(row: Row[Any]) -> AlertView:
    labels = json.loads(row.labels)
    same = ("id", "fingerprint", "starts_at", "ends_at", "status", "run", "result", "detail", "times")
    return AlertView(
        **{name: getattr(row, name) for name in (*same, "first_received_at", "last_received_at")},
        alertname=labels.get("alertname", ""),
        labels=labels,
        annotations=json.loads(row.annotations),
        command=row.command_id,
    )
