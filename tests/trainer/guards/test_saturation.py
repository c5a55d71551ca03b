"""A number that was computed from batches and stands still is told once; settings and zeros are not."""

import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from torch import nn

from shared.events import Finding
from trainer.guards.base import StepView, Vitals, Watched
from trainer.guards.saturation import Saturation

WATCHED = Watched(nn.Module(), {})


@pytest.fixture
def asked(vitals: Callable[..., Vitals]) -> Callable[..., list[Finding]]:
    def ask(guard: Saturation, values: Iterable[float]) -> list[Finding]:
        views = (StepView(vitals(parts={"weight": value}), (), WATCHED) for value in values)
        return [found for view in views if (found := guard.inspect(view)) is not None]

    return ask


def test_a_weight_on_its_clamp_is_told_once(asked: Any) -> None:
    (found,) = asked(Saturation(), [0.0] * 60 + [5000.0] * 500)
    assert "part weight has been exactly 5000 for 50 steps" in found.message


@pytest.mark.parametrize("values", [[0.3] * 300, [0.0] * 300, [1.0, 0.0] * 200, [0.5] + [0.0] * 300])
def test_settings_what_is_switched_off_and_what_changes_are_not_told(asked: Any, values: Any) -> None:
    assert asked(Saturation(), values) == []


def test_a_value_that_moves_a_little_is_not_on_a_limit(asked: Any) -> None:
    assert asked(Saturation(), itertools.accumulate([1e-12] * 300, initial=5000.0)) == []


def test_the_row_goes_on_after_a_resume(asked: Any) -> None:
    guard, other = Saturation(), Saturation()
    assert asked(guard, [1.0, *[2.0] * 30]) == []
    other.load_state_dict(json.loads(json.dumps(guard.state_dict(), allow_nan=False)))
    assert asked(other, [2.0] * 19) == []
    assert len(asked(other, [2.0])) == 1


def test_a_value_that_is_not_finite_is_no_limit_and_can_be_saved(asked: Any) -> None:
    guard = Saturation()
    assert asked(guard, [1.0, *[float("nan")] * 60]) == []
    asked(guard, [float("inf")])
    json.dumps(guard.state_dict(), allow_nan=False)
