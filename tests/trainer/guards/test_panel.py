import logging
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from shared.events import Finding, Severity
from trainer.guards.base import StepView, Verdict, Vitals, finding
from trainer.guards.panel import Panel


class Scripted:
    """Answers as told, step by step, and remembers what it was asked."""

    def __init__(self, name: str, *answers: Severity | Exception | None, scans: bool = False) -> None:
        self.name, self.scans = name, scans
        self.answers, self.alarms, self.memory = list(answers), [], 0

    def inspect(self, view: StepView) -> Finding | None:
        self.alarms.append(view.alarm)
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return None if answer is None else finding(self.name, view, answer, f"{self.name} saw it")

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory = state["memory"]


@pytest.fixture
def view(vitals: Callable[..., Vitals]) -> StepView:
    return StepView(vitals(), (), watched=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("severities", "verdict"),
    [
        ([None, None], Verdict.PROCEED),
        ([Severity.INFO, Severity.WARNING], Verdict.PROCEED),
        ([Severity.ERROR, Severity.WARNING], Verdict.SKIP_STEP),
        ([Severity.ERROR, Severity.CRITICAL], Verdict.ROLL_BACK),
    ],
)
def test_the_gravest_answer_decides(severities: list[Any], verdict: Verdict, view: StepView) -> None:
    panel = Panel([Scripted(f"guard {i}", severity) for i, severity in enumerate(severities)])
    judgement = panel.judge(view)
    assert judgement.verdict is verdict
    assert len(judgement.findings) == sum(severity is not None for severity in severities)


def test_an_error_makes_guards_that_scan_do_so_at_once(view: StepView) -> None:
    scanner, looker = Scripted("scanner", scans=True), Scripted("looker", Severity.WARNING, Severity.ERROR)
    panel = Panel([scanner, looker])
    panel.judge(view)
    panel.judge(view)
    assert (looker.alarms, scanner.alarms) == ([False, False], [False, True])


def test_a_refused_step_is_an_alarm(vitals: Callable[..., Vitals]) -> None:
    scanner = Scripted("scanner", scans=True)
    refused = vitals(refused=True, reason="spike")
    Panel([scanner]).judge(StepView(refused, (), watched=None))  # type: ignore[arg-type]
    assert scanner.alarms == [True]


def test_a_guard_that_raises_is_a_finding_and_the_others_are_asked(
    view: StepView, caplog: pytest.LogCaptureFixture
) -> None:
    panel = Panel([Scripted("broken", KeyError("loss")), Scripted("sound", Severity.ERROR)])
    judgement = panel.judge(view)
    assert judgement.verdict is Verdict.SKIP_STEP
    broken, sound = judgement.findings
    assert (broken.guard, broken.severity) == ("panel", Severity.WARNING)
    assert broken.message == "guard broken raised KeyError: 'loss'"
    assert sound.guard == "sound"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


def test_three_times_in_a_row_switch_a_guard_off(view: StepView) -> None:
    guard = Scripted("broken", *[ValueError("no")] * 9)
    panel = Panel([guard])
    findings = [judgement.findings for judgement in (panel.judge(view) for _ in range(5))]
    assert [len(found) for found in findings] == [1, 1, 1, 0, 0]
    assert findings[2][0].message.endswith("3 times in a row, so it is switched off")
    assert len(guard.alarms) == 3
    panel.load_state_dict(panel.state_dict())
    assert len(panel.judge(view).findings) == 1  # a new chance with a new state


def test_a_guard_that_recovers_is_kept(view: StepView) -> None:
    guard = Scripted("shaky", *[ValueError("no"), ValueError("no"), None] * 5)
    panel = Panel([guard])
    for _ in range(15):
        panel.judge(view)
    assert len(guard.alarms) == 15


def test_memories_are_kept_by_name() -> None:
    first, second = Scripted("first"), Scripted("second")
    first.memory, second.memory = 1, 2
    saved = Panel([first, second]).state_dict()
    new = [Scripted("second"), Scripted("first")]
    Panel(new).load_state_dict(saved)
    assert [guard.memory for guard in new] == [2, 1]


def test_a_guard_without_a_saved_memory_starts_anew_and_is_told_once(view: StepView) -> None:
    old, new = Scripted("old"), Scripted("new")
    panel = Panel([old, new])
    old.memory = 3
    saved = Panel([old, Scripted("gone")]).state_dict()
    old.memory, new.memory = 7, 8  # of a stretch that is lost
    panel.load_state_dict(saved)
    assert (old.memory, new.memory) == (3, 0)
    (told,) = panel.judge(view).findings
    assert told.severity is Severity.INFO
    assert "new without a saved memory" in told.message
    assert "gone, whom nobody knows" in told.message
    assert panel.judge(view).findings == ()
    panel.load_state_dict(panel.state_dict())
    assert panel.judge(view).findings == ()


def test_two_guards_with_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name: first"):
        Panel([Scripted("first"), Scripted("first")])


def test_a_scan_between_steps_asks_who_scans_and_tells_of_a_corrupt_state_only(view: StepView) -> None:
    scanner = Scripted("scanner", Severity.ERROR, Severity.CRITICAL, RuntimeError("a mistake"), scans=True)
    looker = Scripted("looker", Severity.CRITICAL)
    panel = Panel([looker, scanner])
    found = [panel.scan(view) for _ in range(4)]
    assert [[one.message for one in some] for some in found] == [[], ["scanner saw it"], [], []]
    assert (scanner.alarms, looker.alarms) == ([True] * 4, [])


class Unable(Scripted):
    """Raises where it is to start anew."""

    def rebase(self, watched: object) -> None:
        raise RuntimeError("two devices")


def test_a_guard_that_raises_at_a_new_start_is_told_once_and_switched_off(view: StepView) -> None:
    unable, sound = Unable("unable", Severity.CRITICAL, Severity.CRITICAL), Scripted("sound")
    panel = Panel([unable, sound])
    panel.rebase(None)  # type: ignore[arg-type]
    (told,) = panel.judge(view).findings
    assert (told.guard, told.severity) == ("panel", Severity.WARNING)
    assert "guard unable raised RuntimeError: two devices" in told.message
    assert panel.judge(view).findings == ()
    assert (len(unable.alarms), len(sound.alarms)) == (0, 2)
    panel.load_state_dict(panel.state_dict())
    assert panel.judge(view).verdict is Verdict.ROLL_BACK
