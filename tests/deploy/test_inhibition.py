"""One sick run makes one page: a real Alertmanager with the shipped configuration silences the rest."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.alerting import Alerting, eventually, missing
from tests.deploy.test_rules import ALERTS


class Manager:
    """A real Alertmanager; the monitor that it should tell is not there."""

    def __init__(self, alerting: Alerting) -> None:
        self._api = f"{alerting.alertmanager}/api/v2/alerts"

    def fire(self, name: str, run: str = "") -> None:
        about = {"project": "p", "run": run} if run else {}
        labels = {"alertname": f"TrainHealth{name}", **ALERTS[f"TrainHealth{name}"]["labels"], **about}
        httpx.post(self._api, json=[{"labels": labels}], timeout=10).raise_for_status()

    def loud(self) -> set[str]:
        """What pages somebody, as ALERT or ALERT of RUN, but the watchdog that Prometheus sends."""
        told = httpx.get(self._api, params={"inhibited": "false"}, timeout=10).raise_for_status().json()
        names = (
            f"{one['labels']['alertname']} {one['labels'].get('run', '')}".removeprefix("TrainHealth").strip()
            for one in told
        )
        return set(names) - {"Watchdog"}

    def all_fired(self, count: int) -> bool:
        told = httpx.get(self._api, timeout=10).raise_for_status().json()
        return sum(one["labels"]["alertname"] != "TrainHealthWatchdog" for one in told) == count


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    if missing():
        pytest.skip(f"not installed: {', '.join(missing())}; packages prometheus and prometheus-alertmanager")
    alerting = Alerting(tmp_path / "alerting", "127.0.0.1:1")
    try:
        eventually(lambda: alerting.is_ready(alerting.alertmanager), "Alertmanager is ready")
        yield Manager(alerting)
    finally:
        alerting.close()


def test_what_explains_the_rest_of_a_run_silences_it_and_no_other_run(manager: Manager) -> None:
    sick = {
        "lost": ("RunLost", "RunDiverged", "Nonfinite", "RollbackLoop", "LossRisen", "CommandUnacknowledged"),
        "looping": ("RollbackLoop", "RunDiverged", "Nonfinite", "GradNormSpike"),
        "not-finite": ("Nonfinite", "NonfiniteRecent", "RunDiverged", "GradOverflowStorm"),
        "diverged": ("RunDiverged", "LossRisen", "SeqGaps"),
        "risen": ("LossRisen",),
    }
    for run, names in sick.items():
        for name in names:
            manager.fire(name, run)
    assert manager.all_fired(sum(len(names) for names in sick.values()))
    pages = {f"{names[0]} {run}" for run, names in sick.items()}
    eventually(lambda: manager.loud() == pages, f"only {pages} are told", 10)
    manager.fire("IngestErrors")
    manager.fire("MonitorDown")
    eventually(
        lambda: manager.loud() == {"MonitorDown", "IngestErrors"}, "no run is told without a monitor", 10
    )


def test_an_alert_that_orders_a_rollback_is_silenced_by_none_that_does_not_explain_it(
    manager: Manager,
) -> None:
    equals = ("RunDiverged", "NonfiniteRecent", "CommandUnacknowledged")
    for name in equals:
        manager.fire(name, "r")
    for name in ("RunLost", "LossRisen"):  # fired last, and silenced: then all before has been considered
        manager.fire(name, "other")
    told = {"RunLost other", *(f"{name} r" for name in equals)}
    eventually(lambda: manager.loud() == told, f"only {told} are told", 10)
