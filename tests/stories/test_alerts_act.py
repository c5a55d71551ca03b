"""A NaN in a watched run: Prometheus sees it, Alertmanager tells the monitor, and the trainer goes back.

With the programs of Debian's packages, and the configuration that is shipped.
"""

import json
import re
import signal
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.alerting import Alerting, eventually, missing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 5000
"""More than it takes until the end of the story: the run is stopped then."""
WITHIN_S = 15.0
"""From the NaN to the obeyed order. A quiet machine takes 1 to 3 s (benchmarks/alert_latency.py measures it);
a busy one shares its cores among five programs."""
DASHBOARDS = sorted((Path(__file__).parents[2] / "deploy/grafana/dashboards").glob("*.json"))


class Story:
    """The fault, and what became of it: told once, asked about by several tests."""

    def __init__(self, house: Any, alerting: Alerting, monitor: Any, trainer: Any) -> None:
        self.monitor, self.alerting, self.trainer = monitor, alerting, trainer
        eventually(lambda: self._has_good_checkpoint() and monitor.step() > 12, "there is a way back", 300)
        eventually(lambda: alerting.ask("trainhealth_step"), "the run is scraped")
        (house.run_folder / "strike").touch()
        struck = house.run_folder / "struck"
        eventually(struck.exists, "the fault strikes")
        eventually(lambda: self._states() and self._states()[-1] == "succeeded", "the order is obeyed")
        self.struck_at = float(struck.read_text())
        eventually(lambda: self.alerts(status="resolved"), "the alert is resolved")

    def alerts(self, **which: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.monitor.url}/api/v1/alerts", params=which, timeout=30).json()
        return [one for one in answer["items"] if one["alertname"] == "TrainHealthNonfinite"]

    def commands(self) -> list[dict[str, Any]]:
        return list(self.monitor.tell("/commands")["items"])

    def _states(self) -> list[str]:
        return [change["state"] for one in self.commands() for change in one["history"]]

    def _has_good_checkpoint(self) -> bool:
        assert self.trainer.is_running, self.trainer.log
        return any(state == "good" for _, state in re.findall(r"(step-\S+) is (\w+)", self.trainer.log))


@pytest.fixture(scope="module")
def story(house_at: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    if missing():
        pytest.skip(f"not installed: {', '.join(missing())}; packages prometheus and prometheus-alertmanager")
    with house_at(tmp_path_factory.mktemp("alerts")) as house:
        monitor = house.monitor()
        alerting = Alerting(house.folder / "alerting", monitor.url.removeprefix("http://"))
        try:
            config = house.config(monitor.url)
            config.write_text(config.read_text().replace("steps = 60", f"steps = {STEPS}"))
            trainer = house.program("tests.stories.faulty_trainer", str(config))
            alerting.wait()
            yield Story(house, alerting, monitor, trainer)
            trainer.end(signal.SIGKILL)
        finally:
            alerting.close()


def test_a_nan_is_answered_by_one_rollback_soon(story: Story) -> None:
    (command,) = story.commands()
    assert (command["kind"], command["issued_by"]) == ("roll_back", "alertmanager")
    assert command["reason"].startswith("TrainHealthNonfinite: ")
    assert [change["state"] for change in command["history"]] == [
        "pending",
        "delivered",
        "accepted",
        "succeeded",
    ]
    since = [datetime.fromisoformat(one["time"]).timestamp() - story.struck_at for one in command["history"]]
    assert 0 < since[-1] < WITHIN_S, f"seconds from the NaN to pending … succeeded: {since}"


def test_the_run_went_back_to_a_good_checkpoint_and_the_alert_is_resolved(story: Story) -> None:
    (rollback,) = story.monitor.events(type="rollback")
    assert rollback["trigger"] == "command"
    assert rollback["to_step"] < rollback["from_step"]
    (alert,) = story.alerts()
    assert (alert["status"], alert["result"], alert["command"]) == (
        "resolved",
        "ordered",
        story.commands()[0]["id"],
    )
    eventually(lambda: not story.alerting.firing("TrainHealthNonfinite"), "it fires no more")


def test_every_step_after_the_fault_is_there_once(story: Story) -> None:
    seen = story.monitor.step()
    eventually(lambda: story.monitor.step() > seen, "training goes on")
    steps = [step for step, _ in story.monitor.curves()["loss"]]
    assert steps == list(range(len(steps)))


MAY_BE_EMPTY = re.compile(r"^ALERTS|\[\$__interval\]\) > 0$")
"""Nothing fires at the end of the story, and marks stand only where something happens just then."""


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_query_of_a_dashboard_finds_something(story: Story, path: Path) -> None:
    empty = [expr for expr in _queries(json.loads(path.read_text())) if not story.alerting.ask(_chosen(expr))]
    assert [expr for expr in empty if not MAY_BE_EMPTY.search(expr)] == []


def _chosen(expr: str) -> str:
    """The expression with what Grafana puts in for its variables."""
    chosen = {"$__rate_interval": "1m", "$__interval": "5s", "$project": "default", "$run": "radio-7"}
    for variable, value in chosen.items():
        expr = expr.replace(variable, value)
    return expr


def _queries(dashboard: Any) -> list[str]:
    """Every expression in it: of panels, of variables, of annotations."""
    if isinstance(dashboard, dict):
        own = [dashboard["expr"]] if isinstance(dashboard.get("expr"), str) else []
        return own + [expr for value in dashboard.values() for expr in _queries(value)]
    return [expr for value in dashboard for expr in _queries(value)] if isinstance(dashboard, list) else []
