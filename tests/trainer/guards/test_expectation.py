import json
import math

import numpy as np
import pytest

from trainer.guards.expectation import LossOfTime, NormOfLoss, Residuals


def residuals() -> Residuals:
    return Residuals(window=256, warm_up=64, refresh=8, floor=0.05)


def test_nothing_stands_out_before_the_warm_up_is_over() -> None:
    known = residuals()
    for _ in range(63):
        known.accept(0.0)
    assert (known.z(1e9), known.at(5.0)) == (0.0, math.inf)
    known.accept(0.0)
    assert known.z(1.0) == pytest.approx(1 / 0.05)  # the floor
    assert known.at(5.0) == pytest.approx(0.25)


def test_median_and_scale_are_those_of_the_window() -> None:
    known, values = residuals(), np.random.default_rng(0).normal(0.3, 0.2, 400)
    for value in values:
        known.accept(value)
    window = values[-256:]
    assert known.usual == max(np.median(window), np.median(window[-16:]))
    assert known.scale == pytest.approx(1.4826 * np.median(np.abs(window - np.median(window))))


def test_wild_values_hardly_shift_what_is_known() -> None:
    calm, shaken = residuals(), residuals()
    for index, value in enumerate(np.random.default_rng(0).normal(0, 0.2, 256)):
        calm.accept(value)
        shaken.accept(100.0 if index % 10 == 0 else value)
    assert shaken.scale < 1.5 * calm.scale


def test_the_end_of_a_long_descent_is_no_spike() -> None:
    known, highest = residuals(), 0.0
    for step in range(600):
        residual = -0.7 if step < 300 else -0.7 * math.exp(-(step - 300) / 50)
        highest = max(highest, known.z(residual))
        known.accept(residual)
    assert highest < 5


def test_unseen_times_take_after_their_neighbours() -> None:
    losses = LossOfTime(0.02)
    assert losses.is_empty
    losses.learn([10, 20], [math.e, math.e**3])
    assert [math.log(losses.expected()[i]) for i in (0, 10, 15, 20, 31)] == pytest.approx([1, 1, 2, 3, 3])


def test_a_loss_without_a_logarithm_teaches_nothing() -> None:
    losses = LossOfTime(0.02)
    losses.learn([1, 1, 1, 1], [0.0, -1.0, math.nan, math.inf])
    assert losses.is_empty


def test_the_mean_is_plain_at_first_and_then_forgets() -> None:
    losses = LossOfTime(0.25)
    for value in (1.0, 3.0, 2.0):
        losses.learn([4], [math.exp(value)])
    assert math.log(losses.expected()[4]) == pytest.approx(2.0)
    losses.learn([4] * 9, [math.exp(10.0)] * 9)
    assert math.log(losses.expected()[4]) == pytest.approx(10 - 8 * 0.75**9)


def test_the_line_is_weighted_least_squares() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    y = 0.4 + 1.7 * x + rng.normal(0, 0.1, 300)
    line = NormOfLoss(0.995)
    assert line.line() is None
    for a, b in zip(x, y, strict=True):
        line.learn(a, b)
    slope, offset = np.polyfit(x, y, 1, w=0.995 ** (np.arange(299, -1, -1) / 2))
    assert line.line() == pytest.approx((offset, slope))


def test_a_constant_explains_nothing() -> None:
    line = NormOfLoss(0.995)
    for y in np.linspace(1, 2, 100):
        line.learn(0.5, y)
    offset, slope = line.line() or (0.0, 1.0)
    assert slope == 0.0
    assert 1 < offset < 2


@pytest.mark.parametrize("steps", [0, 30, 300])
def test_statistics_survive_json_to_the_bit(steps: int) -> None:
    rng = np.random.default_rng(0)
    pairs = [
        (residuals(), residuals()),
        (LossOfTime(0.02), LossOfTime(0.02)),
        (NormOfLoss(0.9), NormOfLoss(0.9)),
    ]
    for first, second in pairs:
        for value in rng.random(steps):
            if isinstance(first, Residuals):
                first.accept(value)
            elif isinstance(first, LossOfTime):
                first.learn([int(value * 32)], [value])
            else:
                first.learn(value, -value)
        state = json.dumps(first.state_dict(), allow_nan=False)
        second.load_state_dict(json.loads(state))
        assert json.dumps(second.state_dict()) == state
