"""Facts: what one batch after the other leaves behind, whatever order the news comes in."""

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from monitor_service.facts import MAX_GUARDS, Facts, nonfinite_at_the_end
from shared.exchange import Batch

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
Build = Callable[..., dict[str, Any]]


def fold(batches: Sequence[dict[str, Any]]) -> Facts:
    """Facts after these batches, one a second."""
    facts = Facts.at_registration(NOON)
    for second, batch in enumerate(batches, start=1):
        facts.take(Batch.model_validate(batch), NOON + timedelta(seconds=second))
        facts = Facts.model_validate_json(facts.model_dump_json())  # as the database keeps them
    return facts


def rollback(from_step: int, to_step: int) -> dict[str, Any]:
    words = {"source": "snapshot", "reason": "weights", "trigger": "guard", "seconds": 0.5}
    return {"type": "rollback", "step": from_step, "from_step": from_step, "to_step": to_step, **words}


def begins(attempt: int, step: int, reason: str = "rollback") -> dict[str, Any]:
    return {"type": "attempt_started", "step": step, "attempt": attempt, "reason": reason}


def finding(step: int, severity: str = "error", guard: str = "nonfinite") -> dict[str, Any]:
    return {"type": "finding", "step": step, "guard": guard, "severity": severity, "message": "bad"}


def test_the_newest_values_survive_the_database_even_if_not_finite(batch: Build) -> None:
    facts = fold([batch(1, [1, 2], loss=[0.5, "NaN"], grad_norm=[1.0, "Infinity"])])
    assert facts.step == 2
    assert math.isnan(facts.loss or 0)
    assert facts.grad_norm == math.inf
    assert facts.readings.nonfinite == {"loss/nan": 1, "grad/inf": 1}


def test_non_finite_losses_in_a_row_are_counted_over_batches(batch: Build) -> None:
    first, second = batch(1, [1, 2], loss=[1, "NaN"]), batch(2, [3, 4], loss=["NaN", "Infinity"])
    assert fold([first, second]).nonfinite_losses == 3
    assert fold([first, second, batch(3, [5, 6], loss=["NaN", 0.1])]).nonfinite_losses == 0


@pytest.mark.parametrize(
    ("values", "row"), [([], 0), ([1.0], 0), ([math.nan, 1.0], 0), ([1.0, math.inf], 1), ([math.nan] * 3, 3)]
)
def test_the_row_at_the_end_is_counted(values: list[float], row: int) -> None:
    assert nonfinite_at_the_end(values) == row


def test_a_late_batch_counts_its_steps_and_leaves_the_present_alone(batch: Build) -> None:
    facts = fold([batch(2, [11, 12], loss=[0.2, 0.1]), batch(1, [1, 2], loss=["NaN", "NaN"])])
    assert (facts.step, facts.loss, facts.nonfinite_losses) == (12, 0.1, 0)
    assert facts.steps_total == 4
    assert facts.last_seen == NOON + timedelta(seconds=2)
    assert facts.last_step_at == NOON + timedelta(seconds=1)


@pytest.mark.parametrize("attempt_of_closing_batch", [1, 2])
def test_a_rollback_takes_the_step_back_wherever_its_events_travel(
    batch: Build, attempt_of_closing_batch: int
) -> None:
    news = [rollback(100, 60), begins(2, 60)]
    before = batch(1, [99, 100], loss=[1, 1])
    closing = batch(2, events=news, attempt=attempt_of_closing_batch)
    facts = fold([before, closing])
    assert (facts.attempt, facts.step, facts.steps_lost) == (2, 60, 40)
    facts = fold([before, closing, batch(3, [60], attempt=2, loss=[0.5])])
    assert (facts.step, facts.loss) == (60, 0.5)


def test_news_of_a_beginning_that_comes_late_does_not_take_the_step_back(batch: Build) -> None:
    facts = fold([batch(2, [61, 62], attempt=2, loss=[1, 1]), batch(1, events=[begins(2, 60)], attempt=2)])
    assert facts.step == 62


def test_lost_time_is_the_restore_and_the_steps_at_their_usual_duration(batch: Build) -> None:
    facts = fold([batch(1, range(101), loss=[1] * 101, events=[rollback(100, 60)])])
    assert facts.seconds_lost == pytest.approx(0.5 + 40 * 1.0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_after_the_end_the_step_is_how_many_updates_were_applied(
    batch: Build, order: tuple[int, ...]
) -> None:
    end = {"type": "run_ended", "step": 600, "status": "finished"}
    batches = [batch(1, [598, 599], loss=[0.2, 0.1]), batch(2, events=[end])]
    facts = fold([batches[index] for index in order])
    assert facts.reached == 600
    assert facts.loss == 0.1
    assert fold([*batches, batch(3, events=[begins(2, 600, "resume")], attempt=2)]).reached == 600
    assert fold(batches[:1]).reached == 599


def test_an_end_is_over_when_a_new_attempt_begins(batch: Build) -> None:
    end = {"type": "run_ended", "step": 5, "status": "failed", "message": "out of memory"}
    ended = fold([batch(1, [5], loss=[1], events=[end])])
    assert ended.ended is not None
    assert ended.ended.status == "failed"
    resumed = batch(1, events=[begins(2, 3, "resume")], attempt=2, session="s2")
    assert fold([batch(1, [5], loss=[1], events=[end]), resumed]).ended is None
    late = [resumed, batch(1, [5], loss=[1], events=[end])]
    assert fold(late).ended is None


def test_the_newest_error_is_the_alarm_and_a_warning_is_none(batch: Build) -> None:
    facts = fold([batch(1, events=[finding(7), finding(9), finding(8), finding(11, "warning")])])
    assert facts.alarm is not None
    assert facts.alarm.step == 9
    assert facts.findings == {"nonfinite/error": 3, "nonfinite/warning": 1}


def test_guards_beyond_the_limit_are_counted_together(batch: Build) -> None:
    some = [finding(1, guard=f"guard{n}") for n in range(MAX_GUARDS + 5)]
    facts = fold([batch(1, events=some)])
    assert facts.findings["other/error"] == 5
    assert len(facts.findings) == MAX_GUARDS + 1


def test_a_refused_step_counts_by_reason_with_its_refused_numbers(batch: Build) -> None:
    skip = {"type": "step_skipped", "step": 3, "reason": "nonfinite_grad", "loss": 0.5, "grad_norm": "NaN"}
    facts = fold([batch(1, [1, 2], loss=[1, 1], events=[skip])])
    assert facts.skipped == {"nonfinite_grad": 1}
    assert facts.readings.nonfinite == {"grad/nan": 1}
    assert facts.step == 2


def test_a_clock_that_was_put_back_an_hour_does_not_hide_the_next_silence(batch: Build) -> None:
    facts = fold([batch(1, [1], loss=[1])])
    facts.hear(NOON - timedelta(hours=1))
    assert facts.last_seen == NOON - timedelta(hours=1)


def test_the_step_time_ignores_a_clock_that_jumps_back(batch: Build) -> None:
    strange = batch(2, [3], loss=[1])
    strange["columns"]["time"] = [0.0]
    assert fold([batch(1, [1, 2], loss=[1, 1]), strange]).step_seconds == 1.0
