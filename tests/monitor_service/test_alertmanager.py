"""A real Alertmanager and the real monitor: what one of them says, the other does once."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest

from monitor_service.pushing import Pusher
from shared.base import utc_now

pytestmark = pytest.mark.slow
REGISTRATION = {"started_at": "2026-03-01T12:00:00Z"}
Until = Callable[..., Any]


def alert(run: str, ends_in_s: float = 300.0) -> dict[str, Any]:
    """As Prometheus sends it to Alertmanager."""
    labels = {"alertname": "TrainHealthNonfinite", "project": "default", "run": run, "severity": "critical"}
    return {
        "labels": {**labels, "action": "roll_back"},
        "annotations": {"summary": "The loss is not finite."},
        "startsAt": (utc_now() - timedelta(seconds=1)).isoformat(),
        "endsAt": (utc_now() + timedelta(seconds=ends_in_s)).isoformat(),
    }


def test_an_alert_of_alertmanager_rolls_back_once_while_it_is_repeated_every_second(
    program: Any, alertmanager: Any, until: Until
) -> None:
    monitor = program()
    for run in ("demo", "other"):
        monitor.ask("PUT", f"/runs/{run}", json=REGISTRATION)
    manager = alertmanager(f"{monitor.url}/api/v1/alerts")
    manager.send(alert("demo"))
    (command,) = until(lambda: monitor.ask("GET", "/runs/demo/commands")["items"], "a command is ordered")
    assert (command["kind"], command["issued_by"]) == ("roll_back", "alertmanager")
    assert command["reason"] == "TrainHealthNonfinite: The loss is not finite."
    until(lambda: monitor.ask("GET", "/alerts")["items"][0]["times"] >= 3, "it came three times")
    manager.send(alert("demo", ends_in_s=-0.5))
    kept = until(lambda: monitor.ask("GET", "/alerts?status=resolved")["items"], "it is resolved")
    assert (kept[0]["result"], kept[0]["command"]) == ("ordered", command["id"])
    assert len(monitor.ask("GET", "/runs/demo/commands")["items"]) == 1
    assert monitor.ask("GET", "/runs/other/commands")["items"] == []
    assert manager.count("notifications_failed_total") == 0


def test_what_cannot_be_done_is_answered_so_that_alertmanager_does_not_call_it_a_failure(
    program: Any, alertmanager: Any, until: Until
) -> None:
    monitor = program()
    monitor.ask("PUT", "/runs/demo", json=REGISTRATION)
    over = {"type": "run_ended", "step": 1, "status": "finished"}
    monitor.ask(
        "POST", "/runs/demo/exchange", json={"session": "s", "seq": 1, "attempt": 1, "events": [over]}
    )
    manager = alertmanager(f"{monitor.url}/api/v1/alerts")
    manager.send(alert("demo"), alert("nobody"))
    until(lambda: len(monitor.ask("GET", "/alerts")["items"]) == 2, "both have come")
    until(lambda: manager.count("notifications_total") >= 4, "and were repeated")
    results = {one["run"]: one["result"] for one in monitor.ask("GET", "/alerts")["items"]}
    assert results == {"demo": "run_over", "nobody": "unknown_run"}
    assert manager.count("notifications_failed_total") == 0


def test_a_sick_run_is_pushed_to_alertmanager_and_resolved_when_it_recovers(
    program: Any, alertmanager: Any, until: Until, batch: Any
) -> None:
    manager = alertmanager()
    monitor = program(TRAINHEALTH_ALERTMANAGER_URL=manager.url, TRAINHEALTH_LOST_AFTER_S="3600")
    monitor.ask("PUT", "/runs/demo", json=REGISTRATION)
    monitor.ask("POST", "/runs/demo/exchange", json=batch(1, range(5), loss=["NaN"] * 5))
    (told,) = until(manager.alerts, "Alertmanager knows")
    assert told["labels"] == {
        **{"alertname": "TrainHealthRunDiverged", "project": "default", "run": "demo"},
        **{"severity": "critical", "action": "roll_back"},
    }
    assert "5 losses are not finite" in told["annotations"]["summary"]
    monitor.ask("POST", "/runs/demo/exchange", json=batch(2, [5], loss=[1.0]))
    until(lambda: not manager.alerts(), "it is resolved")


def test_an_alertmanager_that_is_away_delays_nothing_and_hears_of_it_later(
    serve: Any, alertmanager: Any, batch: Any
) -> None:
    monitor = serve()
    monitor.register()
    monitor.send(batch(1, range(5), loss=["NaN"] * 5))
    parts = monitor.monitor
    settings = parts.settings.model_copy(update={"alertmanager_url": "http://127.0.0.1:9"})
    pusher = Pusher(parts.store, settings, parts.meters)
    with pytest.raises(httpx.HTTPError):
        pusher.push_once(utc_now())
    manager = alertmanager()
    pusher._url = f"{manager.url}/api/v2/alerts"
    now = utc_now()
    for later_s, sent in ((0, 1), (2, 1), (59, 1), (60, 2)):  # nothing new is said again after a minute
        pusher.push_once(now + timedelta(seconds=later_s))
        assert f'trainhealth_alert_push_total{{result="sent"}} {sent}.0' in monitor.get("/metrics").text
    assert len(manager.alerts()) == 1
    other = Pusher(parts.store, settings, parts.meters)
    other.push_once(now + timedelta(seconds=61))  # the first holds the lease: this one says nothing
    assert 'trainhealth_alert_push_total{result="failed"} 1.0' in monitor.get("/metrics").text
