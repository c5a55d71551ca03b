"""Health: each rule on both sides of its threshold, and who speaks first."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from monitor_service.facts import Facts
from monitor_service.health import OVER, RunStatus, assess
from monitor_service.landmarks import Alarm, End, Return
from monitor_service.settings import HealthConfig

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
CONFIG = HealthConfig()
ALARM = Alarm(attempt=1, step=100, words="nonfinite at step 100: NaN in the gradient")
RETURNED = Return(to_step=60, words="rolled back from step 100 to 60: weights")


def facts(silent_s: float = 0, without_steps_s: float = 0, **known: Any) -> Facts:
    """Facts at noon about a run that trains well, except for what is ``known``."""
    healthy = {"attempt": 1, "step": 100, "loss": 0.1, "step_seconds": 1.0}
    return Facts(
        last_seen=NOON - timedelta(seconds=silent_s),
        progress_at=NOON - timedelta(seconds=max(without_steps_s, silent_s)),
        **{**healthy, **known},
    )


@pytest.mark.parametrize(
    ("known", "status"),
    [
        (facts(), "healthy"),
        (facts(step=None), "healthy"),
        (facts(silent_s=45), "healthy"),
        (facts(silent_s=46), "lost"),
        (facts(without_steps_s=120), "healthy"),
        (facts(without_steps_s=121), "stalled"),
        (facts(without_steps_s=1000, step_seconds=50), "healthy"),
        (facts(without_steps_s=1001, step_seconds=50), "stalled"),
        (facts(nonfinite_losses=4, loss=float("nan")), "healthy"),
        (facts(nonfinite_losses=5, loss=float("nan")), "diverged"),
        (facts(alarm=ALARM), "suspect"),
        (facts(alarm=ALARM, step=149), "suspect"),
        (facts(alarm=ALARM, step=150), "healthy"),
        (facts(alarm=ALARM, attempt=2), "healthy"),
        (facts(returned=RETURNED, step=60), "recovering"),
        (facts(returned=RETURNED, step=79), "recovering"),
        (facts(returned=RETURNED, step=80), "healthy"),
        (facts(obeying="c1"), "recovering"),
        (facts(nonfinite_losses=9, loss=float("nan"), silent_s=60), "lost"),
        (facts(nonfinite_losses=9, loss=float("nan"), obeying="c1"), "recovering"),
        (facts(returned=RETURNED, step=60, alarm=ALARM), "recovering"),
    ],
)
def test_the_status_follows_from_the_facts(known: Facts, status: str) -> None:
    health = assess(known, NOON, CONFIG)
    assert health.status == status
    assert health.reasons


@pytest.mark.parametrize("status", sorted(OVER))
def test_a_run_that_said_it_ended_stays_ended_however_silent_it_is(status: RunStatus) -> None:
    ended = facts(silent_s=9999, ended=End(attempt=1, status=status, message="done", at=NOON))
    health = assess(ended, NOON, CONFIG)
    assert health.status == status
    assert "done" in health.reasons[0]


@pytest.mark.parametrize("silent_s", [46, 4_600, 46_000_000])
def test_silence_is_never_a_failure(silent_s: float) -> None:
    assert assess(facts(silent_s=silent_s), NOON, CONFIG).status is RunStatus.LOST


def test_reasons_do_not_change_while_nothing_happens() -> None:
    silent = facts(silent_s=60)
    later = assess(silent, NOON + timedelta(hours=1), CONFIG)
    assert assess(silent, NOON, CONFIG) == later
    assert later.reasons == ("nothing heard since 2026-03-01 11:59:00 UTC",)
