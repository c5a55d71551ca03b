"""The history of a loss: five numbers that tell a rise from noise, an outlier, and a shift of level."""

import math
import random
from collections.abc import Sequence

import pytest

from monitor_service.history import LossHistory


def fed(losses: Sequence[float], batch: int = 10) -> LossHistory:
    history = LossHistory()
    for begin in range(0, len(losses), batch):
        history.take(losses[begin : begin + batch])
    return history


def noise(seed: int, count: int, level: float, scatter: float) -> list[float]:
    source = random.Random(seed)
    return [source.gauss(level, scatter) for _ in range(count)]


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_a_loss_that_stays_above_twice_its_low_has_risen(batch: int) -> None:
    steady, risen = noise(1, 1000, 0.1, 0.02), noise(2, 400, 0.25, 0.02)
    assert not fed(steady, batch).has_risen(2.0)
    assert fed(steady + risen, batch).has_risen(2.0)
    assert not fed(steady + risen, batch).has_risen(3.0)


@pytest.mark.parametrize(("level", "scatter"), [(1.0, 0.6), (0.05, 0.05), (0.0, 0.1), (-3.0, 1.5)])
def test_noise_alone_never_rises_in_200_000_steps(level: float, scatter: float) -> None:
    history = LossHistory()
    for number in range(2000):
        history.take(noise(number, 100, level, scatter))
        assert not history.has_risen(2.0)


def test_single_losses_that_wander_never_rise() -> None:
    history = LossHistory()
    for loss in noise(3, 50_000, 0.2, 0.1):
        history.take([loss])
        assert not history.has_risen(2.0)


@pytest.mark.parametrize("outlier", [1e30, math.nan, math.inf, -math.inf])
def test_an_outlier_leaves_the_level_alone(outlier: float) -> None:
    steady = noise(4, 1000, 0.5, 0.05)
    assert not fed([*steady, outlier], 1).has_risen(1.2)
    assert not fed([*steady, *[outlier, 0.5] * 3], 6).has_risen(1.2)


def test_a_loss_that_falls_is_compared_with_its_low_and_not_with_its_beginning() -> None:
    falling = [10.0 * 0.99**step for step in range(600)]
    assert not fed(falling).has_risen(2.0)
    assert fed([*falling, *[0.3] * 300]).has_risen(2.0)


def test_a_blow_up_of_a_loss_without_noise_is_seen_although_nothing_was_expected() -> None:
    assert fed([1.0] * 500 + [30.0] * 500, 1).has_risen(10.0)


def test_a_negative_loss_rises_by_the_size_of_its_low() -> None:
    steady = noise(5, 1000, -4.0, 0.1)
    assert not fed(steady + noise(6, 500, -1.0, 0.1)).has_risen(2.0)
    assert fed(steady + noise(7, 500, 0.5, 0.1)).has_risen(2.0)


def test_nothing_is_said_before_the_loss_is_known() -> None:
    assert not fed([1.0] * 20 + [100.0] * 20).has_risen(2.0)
    assert not LossHistory().has_risen(2.0)
    assert fed([math.nan] * 500).level is None


def test_long_batches_are_sampled_evenly() -> None:
    history = fed(noise(8, 20_000, 1.0, 0.1), 2000)
    assert history.level == pytest.approx(1.0, abs=0.05)
    assert history.count == 20_000


def test_losses_at_the_edge_of_what_a_double_holds_leave_a_history_that_can_be_read() -> None:
    history = fed([1e308, -1e308, 1e300, -1e300] * 50, 4)
    assert LossHistory.model_validate_json(history.model_dump_json()) == history
    assert math.isfinite(history.scatter)
