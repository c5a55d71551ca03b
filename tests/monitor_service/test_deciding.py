"""What a person decides from a terminal: take up a suggestion, choose rules, look at alerts."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from monitor_service.__main__ import ExitCode, main

pytestmark = pytest.mark.slow
Build = Callable[..., dict[str, Any]]
ALERT = {
    **{"status": "firing", "fingerprint": "f1", "startsAt": "2026-03-01T12:00:00Z"},
    "labels": {"alertname": "TrainHealthNonfinite", "run": "demo"},
}


def test_a_person_sees_a_suggestion_takes_it_up_and_lets_the_monitor_act_from_then_on(
    program: Any, batch: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = program()

    def ask(*words: str, code: ExitCode = ExitCode.DONE) -> str:
        assert main([*words, "--url", monitor.url]) == code
        said = capsys.readouterr()
        return said.out if code is ExitCode.DONE else said.err

    monitor.ask("PUT", "/runs/demo", json={"started_at": "2026-03-01T12:00:00Z"})
    assert "nothing is suggested for run 'demo'" in ask("accept", "demo", code=ExitCode.REFUSED)
    monitor.ask("POST", "/runs/demo/exchange", json=batch(1, range(5), loss=["NaN"] * 5))
    words = ask("status", "demo")
    assert "risk of divergence high: it has diverged" in words
    assert "suggested: roll back, since the last 5 losses are not finite" in words
    assert "python -m monitor_service accept demo" in words
    health = json.loads(ask("status", "demo", "--json"))
    assert (health["risk"]["level"], health["cost"]["steps_lost"]) == ("high", 0)
    command = json.loads(ask("accept", "demo", "--json"))
    assert command["reason"].startswith("suggested: the last 5 losses")
    assert "open: roll_back pending" in ask("status", "demo")

    change = ["--set", "policy=act", "--set", "loss_risen_factor=3", "--reason", "it knows by now"]
    words = ask("rules", "demo", *change)
    assert "policy = act  (of the run)" in words
    assert "it knows by now" in words
    rules = json.loads(ask("rules", "demo", "--unset", "policy", "--reason", "it does not", "--json"))
    assert (rules["of_run"], rules["values"]["policy"]) == ({"loss_risen_factor": "3"}, "suggest")
    assert "loss_risen_factor = 2\n" in ask("rules", "--project", "default")

    monitor.ask("POST", "/alerts", json={"version": "4", "alerts": [ALERT]})
    assert "TrainHealthNonfinite  demo  firing  noted: it asks for nothing" in ask("alerts", "--run", "demo")
    assert ask("alerts", "--status", "resolved") == ""


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["rules"], "name a run, or a project"),
        (["rules", "demo", "--project", "maps"], "name a run, or a project"),
        (["rules", "demo", "--set", "policy=act"], "need --reason"),
    ],
)
def test_arguments_that_do_not_go_together_are_told(
    words: list[str], found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == ExitCode.USAGE
    assert found in capsys.readouterr().err


def test_a_rule_that_does_not_exist_is_refused_with_its_name(
    program: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["rules", "--project", "maps", "--set", "loss_rise=3", "--reason", "x", "--url", program().url]
    assert main(words) == ExitCode.REFUSED
    assert "values.loss_rise: Extra inputs are not permitted" in capsys.readouterr().err
