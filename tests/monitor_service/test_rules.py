"""The monitor's own rules: each on both sides of its limit, off at 0, and what follows from it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from monitor_service.concerns import Concern, Judgement, RiskLevel, Rule
from monitor_service.facts import Facts
from monitor_service.health import RunStatus, assess
from monitor_service.history import LossHistory
from monitor_service.landmarks import Prediction, Unanswered, ValidCheckpoint
from monitor_service.risk import risk_of
from monitor_service.rules import WATCHES, Case, judge
from monitor_service.settings import RunRules
from monitor_service.wire import Session, Wire
from shared.events import Severity

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROSE = LossHistory(count=500, level=0.21, scatter=0.01, low=0.1, low_scatter=0.01)
BLEW_UP = ROSE.model_copy(update={"level": 1.1})


def ago(seconds: float) -> datetime:
    return NOON - timedelta(seconds=seconds)


def facts(**known: Any) -> Facts:
    usual = {"attempt": 1, "step": 100, "attempt_step": 0, "loss": 0.1, "step_seconds": 1.0}
    return Facts(last_seen=NOON, progress_at=NOON, **{**usual, **known})


def since(rule: Rule, seconds: float) -> Judgement:
    return Judgement(pending={rule: ago(seconds)})


def concerns(known: Facts, interval: int | None = 10, **chosen: float) -> list[Rule]:
    _, found = judge(Case(known, NOON, RunRules(**chosen), interval))
    assert all(concern.words for concern in found)
    return [concern.rule for concern in found]


def waits(seconds: float, lapses_in_s: float = 100) -> Unanswered:
    return Unanswered(command="c1", kind="roll_back", since=ago(seconds), expires_at=ago(-lapses_in_s))


def gap(seconds: float) -> Wire:
    return Wire(sessions={"s": Session(last_seq=5, received=3)}, gap_since=ago(seconds))


def lost(seconds: float) -> Wire:
    return Wire(lost={"steps": 7, "rejected": 1}, lost_at=ago(seconds))


def backlog(waiting: int, seconds: float) -> Wire:
    return Wire(waiting=waiting, growing_since=ago(seconds))


def rolled_back(*seconds: float, told: float = 0) -> Facts:
    return facts(rollback_times=[ago(one) for one in seconds], returned_at=ago(told))


@pytest.mark.parametrize(
    ("rule", "speaks", "is_silent"),
    [
        (
            Rule.LOSS_RISEN,
            facts(losses=ROSE, judged=since(Rule.LOSS_RISEN, 300)),
            facts(losses=ROSE, judged=since(Rule.LOSS_RISEN, 299)),
        ),
        (
            Rule.LOSS_DIVERGED,
            facts(losses=BLEW_UP, judged=since(Rule.LOSS_DIVERGED, 60)),
            facts(losses=ROSE, judged=since(Rule.LOSS_DIVERGED, 60)),
        ),
        (Rule.NO_VALID_CHECKPOINT, facts(step=31), facts(step=30)),
        (
            Rule.NO_VALID_CHECKPOINT,
            facts(last_valid=ValidCheckpoint(step=69)),
            facts(last_valid=ValidCheckpoint(step=70)),
        ),
        (Rule.ROLLBACK_LOOP, rolled_back(9000, 3600, 2000, 0), rolled_back(9000, 3601, 2000, 0)),
        (Rule.ROLLBACK_LOOP, rolled_back(2000, 2000, 2000, told=3600), rolled_back(2, 2, 2, told=3601)),
        (Rule.ROLLBACK_LOOP, rolled_back(2, 2, 2), rolled_back(2, 2)),
        (Rule.SPOOL_GROWING, facts(wire=backlog(100, 600)), facts(wire=backlog(99, 600))),
        (Rule.SPOOL_GROWING, facts(wire=backlog(100, 600)), facts(wire=backlog(100, 599))),
        (Rule.REPORTS_DROPPED, facts(wire=lost(3599)), facts(wire=lost(3600))),
        (Rule.SEQUENCE_GAP, facts(wire=gap(60)), facts(wire=gap(59))),
        (Rule.SEQUENCE_GAP, facts(wire=gap(86_399)), facts(wire=gap(86_400))),
        (Rule.COMMAND_UNANSWERED, facts(unanswered=waits(60)), facts(unanswered=waits(59))),
        (Rule.COMMAND_UNANSWERED, facts(unanswered=waits(60)), facts(unanswered=waits(60, 0))),
    ],
)
def test_a_rule_speaks_at_its_limit_and_not_before(rule: Rule, speaks: Facts, is_silent: Facts) -> None:
    interval = 10 if rule is Rule.NO_VALID_CHECKPOINT else None
    assert rule in concerns(speaks, interval)
    assert rule not in concerns(is_silent, interval)


OFF = {
    Rule.LOSS_RISEN: "loss_risen_factor",
    Rule.LOSS_DIVERGED: "loss_diverged_factor",
    Rule.NO_VALID_CHECKPOINT: "no_checkpoint_intervals",
    Rule.ROLLBACK_LOOP: "rollback_loop_count",
    Rule.SPOOL_GROWING: "spool_growing_batches",
    Rule.REPORTS_DROPPED: "reports_dropped_for_s",
    Rule.SEQUENCE_GAP: "sequence_gap_after_s",
    Rule.COMMAND_UNANSWERED: "command_unanswered_after_s",
}
ALL_AT_ONCE = facts(
    losses=BLEW_UP,
    judged=Judgement(pending=dict.fromkeys(Rule, ago(1000))),
    rollback_times=[ago(10)] * 3,
    returned_at=ago(10),
    unanswered=waits(90),
    wire=Wire(
        sessions={"s": Session(last_seq=5, received=3)},
        gap_since=ago(90),
        lost={"steps": 1},
        lost_at=ago(5),
        waiting=500,
        growing_since=ago(900),
    ),
)


@pytest.mark.parametrize("rule", Rule)
def test_a_limit_of_0_switches_one_rule_off_and_no_other(rule: Rule) -> None:
    assert set(concerns(ALL_AT_ONCE)) == set(Rule)
    assert set(concerns(ALL_AT_ONCE, **{OFF[rule]: 0})) == set(Rule) - {rule}


def test_a_run_that_goes_well_concerns_nobody() -> None:
    assert concerns(facts(last_valid=ValidCheckpoint(step=90))) == []
    assert concerns(facts(step=None, attempt_step=None)) == []


def test_a_condition_counts_from_when_it_began_to_hold_and_anew_after_a_pause() -> None:
    config = RunRules()
    known = facts(losses=ROSE)
    for later_s, speaks in ((0, False), (200, False), (300, True)):
        pending, found = judge(Case(known, NOON + timedelta(seconds=later_s), config, None))
        known.judged.pending = pending
        assert bool(found) is speaks
    known.losses = ROSE.model_copy(update={"level": 0.1})
    known.judged.pending, found = judge(Case(known, NOON + timedelta(seconds=301), config, None))
    assert (known.judged.pending, found) == ({}, [])


def test_a_clock_that_was_put_back_makes_no_condition_older() -> None:
    known = facts(losses=ROSE, judged=Judgement(pending={Rule.LOSS_RISEN: ago(-7200)}))
    pending, found = judge(Case(known, NOON, RunRules(), None))
    assert (pending[Rule.LOSS_RISEN], found) == (NOON, [])


def concern(rule: Rule) -> Judgement:
    (severity,) = [watch.severity for watch in WATCHES if watch.rule is rule]
    return Judgement(concerns=[Concern(rule=rule, severity=severity, since=ago(10), words=f"{rule} words")])


@pytest.mark.parametrize("rule", Rule)
def test_what_is_about_the_training_makes_the_run_suspect_and_what_is_about_reports_does_not(
    rule: Rule,
) -> None:
    about_training = {
        Rule.LOSS_RISEN: RunStatus.SUSPECT,
        Rule.NO_VALID_CHECKPOINT: RunStatus.SUSPECT,
        Rule.ROLLBACK_LOOP: RunStatus.SUSPECT,
        Rule.LOSS_DIVERGED: RunStatus.DIVERGED,
    }
    health = assess(facts(judged=concern(rule)), NOON, RunRules())
    assert health.status is about_training.get(rule, RunStatus.HEALTHY)
    assert (f"{rule} words" in health.reasons) is (rule in about_training)


def predicted(severity: Severity, step: int = 90, attempt: int = 1) -> Prediction:
    return Prediction(attempt=attempt, step=step, severity=severity, words="drift at step 90: lag")


@pytest.mark.parametrize(
    ("known", "status", "level", "words"),
    [
        (facts(), "healthy", "none", None),
        (facts(nonfinite_losses=1), "healthy", "raised", "the last 1 losses"),
        (facts(prediction=predicted(Severity.WARNING)), "healthy", "raised", "predicted by drift at step 90"),
        (facts(prediction=predicted(Severity.ERROR)), "healthy", "high", "predicted by drift"),
        (facts(prediction=predicted(Severity.ERROR, step=50)), "healthy", "none", None),
        (facts(prediction=predicted(Severity.ERROR), attempt=2), "healthy", "none", None),
        (facts(judged=concern(Rule.LOSS_RISEN)), "suspect", "high", "loss_risen words"),
        (facts(judged=since(Rule.LOSS_RISEN, 5)), "healthy", "raised", "begun to rise"),
        (facts(judged=concern(Rule.ROLLBACK_LOOP)), "suspect", "raised", "rollback_loop words"),
        (facts(judged=concern(Rule.SEQUENCE_GAP)), "healthy", "none", None),
        (facts(nonfinite_losses=9), "diverged", "high", "it has diverged"),
    ],
)
def test_the_risk_is_the_highest_that_anything_speaks_for(
    known: Facts, status: str, level: str, words: str | None
) -> None:
    risk = risk_of(known, RunStatus(status), RunRules())
    assert risk.level is RiskLevel(level)
    assert [words in reason for reason in risk.reasons] == ([] if words is None else [True])
