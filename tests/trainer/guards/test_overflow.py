"""A loss scale on its floor is told, predicts trouble, and the search for a scale does not count."""

import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from torch import nn

from shared.events import Finding, Severity
from trainer.guards.base import StepView, Vitals, Watched
from trainer.guards.overflow import Overflow

WATCHED = Watched(nn.Module(), {})


@pytest.fixture
def asked(vitals: Callable[..., Vitals]) -> Callable[..., list[Finding]]:
    def ask(guard: Overflow, scales: Iterable[float], *, applied: bool) -> list[Finding]:
        reason = None if applied else "overflow"
        views = [
            StepView(vitals(loss_scale=scale, refused=not applied, reason=reason), (), WATCHED)
            for scale in scales
        ]
        return [found for view in views if (found := guard.inspect(view)) is not None]

    return ask


def falling(start: float, times: int) -> list[float]:
    return [start / 2**time for time in range(times)]


def test_a_scale_on_its_floor_is_told_once_and_predicts_divergence(asked: Any) -> None:
    guard = Overflow()
    (found,) = asked(guard, [*falling(65536, 17), 1.0, 1.0], applied=False)
    assert found.severity is Severity.WARNING
    assert found.reading["predicts"] == "divergence"
    assert "the loss scale is at its floor, 1" in found.message
    assert asked(guard, [1.0] * 9, applied=True) == []


def test_the_search_for_a_scale_at_the_start_is_not_told(asked: Any) -> None:
    guard = Overflow()
    assert asked(guard, falling(65536, 15), applied=False) == []
    assert asked(guard, [2.0] * 100, applied=True) == []


def test_nine_overflows_in_a_row_after_applied_steps_are_told(asked: Any) -> None:
    guard = Overflow()
    asked(guard, [65536.0] * 10, applied=True)
    assert asked(guard, falling(65536, 8), applied=False) == []
    assert "fell 9 times in a row" in asked(guard, [256.0], applied=False)[0].message


def test_an_overflow_now_and_then_is_how_a_scaler_works(asked: Any) -> None:
    guard = Overflow()
    for _ in range(50):
        assert asked(guard, [1024.0] * 20, applied=True) == []
        assert asked(guard, [2048.0], applied=False) == []


def test_a_run_without_a_loss_scale_is_never_told(asked: Any) -> None:
    assert asked(Overflow(), [1.0] * 50, applied=True) == []


def test_a_scale_that_recovered_can_be_told_again_also_after_a_resume(asked: Any) -> None:
    guard, other = Overflow(), Overflow()
    asked(guard, falling(16, 5), applied=False)
    other.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert asked(other, [1.0], applied=False) == []
    asked(other, [2.0], applied=True)
    assert len(asked(other, [1.0], applied=False)) == 1
