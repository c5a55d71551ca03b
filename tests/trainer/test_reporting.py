"""What happens is told once, with its numbers, and remembered within bounds."""

import logging
import math
from typing import Any

import pytest

from shared.events import Finding, Severity
from trainer.console import narrated
from trainer.drill.faults import nan_gradient
from trainer.link.client import Link
from trainer.record import RunRecord

Row = tuple[int, int, dict[str, float]]


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    told: list[Row] = []

    def record_step(link: Link, attempt: int, step: int, time_s: float, values: dict[str, float]) -> None:
        told.append((attempt, step, values))

    monkeypatch.setattr(Link, "record_step", record_step)
    return told


def test_a_row_is_told_for_each_applied_update_and_none_for_a_refused_one(lab: Any, rows: list[Row]) -> None:
    lab.run(steps=10, observers=[nan_gradient(4)])
    assert [(attempt, step) for attempt, step, _ in rows] == [(1, step) for step in range(10)]
    assert all(math.isfinite(value) for _, _, values in rows for value in values.values())
    usual = {"loss", "loss/noise", "grad_norm", "lr", "step_seconds", "fetch_seconds"}
    assert all(set(values) - {"clip"} == usual for _, _, values in rows[1:])
    of_modules = set(rows[0][2]) - usual - {"clip"}
    assert of_modules
    assert all(name.startswith("grad_norm/") for name in of_modules)


def test_a_second_objective_has_series_of_its_own(lab: Any, rows: list[Row]) -> None:
    lab.run(steps=2, model=lab.DenoiserWithCritic)
    assert {"critic/loss", "critic/grad_norm", "critic/lr"} <= set(rows[0][2])
    assert rows[0][2]["loss"] != rows[0][2]["critic/loss"]


def test_steps_after_a_rollback_belong_to_the_next_attempt(lab: Any, rows: list[Row]) -> None:
    loop = lab.loop()
    lab.steps(loop, 12)
    loop.go_back("no reason", "guard")
    lab.steps(loop, 12)
    places = [(attempt, step) for attempt, step, _ in rows]
    assert places == [(1, step) for step in range(12)] + [(2, step) for step in range(10, 12)]


def test_the_record_says_running_while_it_runs_and_how_it_ended_afterwards(lab: Any) -> None:
    seen: list[str] = []

    def look(phase: Any, loop: Any) -> None:
        seen.append(RunRecord.load(lab.root / "run/record.json").status)

    for steps in (2, 3):  # the second goes on where the first has finished
        lab.run(steps=steps, observers=[look])
        assert RunRecord.load(lab.root / "run/record.json").status == "finished"
    assert set(seen) == {"running"}


def test_a_loss_that_nothing_is_known_of_is_no_number(lab: Any) -> None:
    loop = lab.loop()
    assert math.isnan(loop.reporter.recent_loss)
    loop.step()
    assert loop.reporter.recent_loss == loop.last[0].loss


def test_the_mean_loss_is_of_the_steps_that_a_rollback_left(lab: Any) -> None:
    loop = lab.loop()
    lab.steps(loop, 33)
    loop.go_back("no reason", "guard")
    twin = lab.loop("twin")
    lab.steps(twin, loop.state.step)
    assert loop.reporter.recent_loss == twin.reporter.recent_loss


def test_a_flood_of_findings_is_counted_in_the_log_and_bounded_in_the_record(
    lab: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reporter = lab.loop().reporter
    monkeypatch.setattr(RunRecord, "save", lambda record, path: None)
    with caplog.at_level(logging.ERROR, "trainer.reporting"):
        for step in range(1_100):
            reporter.finding(Finding(step=step, guard="g", severity=Severity.ERROR, message="again"))
    assert len(caplog.records) == 1_100
    kept = [finding.step for finding in reporter.record.findings]
    assert kept == list(range(100, 1_100))


@pytest.mark.parametrize("is_terminal", [False, True])
def test_people_see_how_far_a_training_is(
    lab: Any, capsys: pytest.CaptureFixture[str], is_terminal: bool
) -> None:
    with narrated(is_terminal) as progress:
        lab.run(steps=51, observers=[progress])
    shown = capsys.readouterr()
    assert shown.out == "", "standard output is for a command's answer"
    assert "run small: finished at step 51" in shown.err
    if not is_terminal:
        (line,) = [line for line in shown.err.splitlines() if "step 50 of 51" in line]
        assert "loss" in line
        assert "gradient norm" in line
