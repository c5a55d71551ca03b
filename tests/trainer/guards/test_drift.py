"""Curves made here, of many scales: what the guard of a run's course sees in them, and where it is quiet."""

import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from trainer.guards.base import Verdict, verdict_on
from trainer.guards.curve import Curve, Sight
from trainer.guards.drift import Drift, DriftConfig

HEALTHY = 600
SCALES = (1e-6, 1.0, 1e9)


def descent(rng: random.Random, rows: int = HEALTHY, noise: float = 0.1, scale: float = 1.0) -> list[float]:
    """A power law with log-normal noise: what a healthy training looks like."""
    return [scale * (2 + row) ** -0.3 * math.exp(rng.gauss(0, noise)) for row in range(rows)]


def seen(losses: Sequence[float], norms: Sequence[float | None] = ()) -> list[tuple[int, Sight]]:
    curve = Curve()
    padded = [*norms, *[None] * (len(losses) - len(norms))]
    told = ((row, curve.update(row, losses[row], padded[row])) for row in range(len(losses)))
    return [(row, sight) for row, sight in told if sight is not None]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("noise", [0.003, 0.1, 0.7])
def test_it_is_silent_on_a_healthy_descent(noise: float, scale: float) -> None:
    for seed in range(10):
        assert seen(descent(random.Random(seed), noise=noise, scale=scale)) == []


@pytest.mark.parametrize("sign", [-1.0, 0.0])
def test_it_is_silent_on_a_loss_of_any_sign(sign: float) -> None:
    for seed in range(10):
        rng = random.Random(seed)
        assert seen([sign * 20 + rng.gauss(0, 10) for _ in range(HEALTHY)]) == []


def test_it_is_silent_when_epochs_and_a_falling_rate_let_the_loss_drop() -> None:
    rng = random.Random(1)
    assert seen([0.7 ** (row // 100) * math.exp(rng.gauss(0, 0.05)) for row in range(HEALTHY)]) == []


@pytest.mark.parametrize("scale", SCALES)
def test_a_single_high_row_is_a_spike(scale: float) -> None:
    losses = descent(random.Random(2), noise=0.05, scale=scale)
    losses[300] *= 5
    assert [(row, sight.kind) for row, sight in seen(losses)] == [(300, "spike")]


@pytest.mark.parametrize(("noise", "factor"), [(0.02, 1.3), (0.1, 2.5), (0.5, 25)])
def test_a_lost_level_is_seen_within_twenty_rows(noise: float, factor: float) -> None:
    for seed in range(5):
        losses = descent(random.Random(seed), noise=noise)
        losses[300:] = [factor * loss for loss in losses[300:]]
        rows = [row for row, _ in seen(losses)]
        assert 300 <= rows[0] < 320


def test_a_slow_divergence_is_seen_before_all_is_lost() -> None:
    losses = descent(random.Random(3), noise=0.1)
    losses[300:] = [loss * 1.01**row for row, loss in enumerate(losses[300:])]
    (row, sight), *_ = seen(losses)
    assert sight.kind in ("divergence", "shift")
    assert losses[row] < losses[0]
    assert row > 300


def test_a_smooth_curve_that_learns_nothing_is_a_plateau() -> None:
    rng = random.Random(4)
    losses = [2.3026 * math.exp(rng.gauss(0, 0.0005)) + 2 * math.exp(-row) for row in range(200)]
    assert [sight.kind for _, sight in seen(losses)] == ["plateau"]


def test_a_slow_descent_is_no_plateau() -> None:
    rng = random.Random(5)
    assert seen([0.6931 - 1e-4 * row + rng.gauss(0, 1e-5) for row in range(200)]) == []


def test_a_small_rise_counts_if_the_gradient_norm_confirms_it() -> None:
    rng = random.Random(6)
    losses = [4.0 * math.exp(rng.gauss(0, 0.01)) for _ in range(100)]
    norms = [2.0 * math.exp(rng.gauss(0, 0.1)) for _ in range(100)]
    losses[60] *= 1.08
    assert seen(losses, norms) == []
    norms[60] *= 12
    assert [(row, sight.kind) for row, sight in seen(losses, norms)] == [(60, "spike")]


def test_norms_that_explode_or_vanish_speak_alone() -> None:
    losses = descent(random.Random(7), rows=100)
    assert [s.kind for _, s in seen(losses, [1.0] * 50 + [100.0] * 2 + [1.0] * 48)] == ["explosion"]
    assert [s.kind for _, s in seen(losses, [1.0] * 50 + [0.0] * 50)] == ["vanishing"]


def test_a_loss_that_falls_to_exactly_zero_has_collapsed() -> None:
    losses = [*descent(random.Random(8), rows=100), *[0.0] * 50]
    assert [(row, sight.kind) for row, sight in seen(losses)] == [(102, "collapse")]


def test_a_new_training_in_the_same_log_is_no_divergence() -> None:
    curve, losses = Curve(), descent(random.Random(9), rows=200, noise=0.02)
    told = [curve.update(row, losses[row]) for row in range(200)]
    told += [curve.update(row, losses[row]) for row in range(200)]
    assert not any(told)


def test_it_sees_the_same_with_a_memory_that_was_saved() -> None:
    losses = descent(random.Random(10))
    losses[400:] = [10 * loss for loss in losses[400:]]
    first, told = Curve(), []
    for row, loss in enumerate(losses):
        if row % 7 == 0:
            text = json.dumps(first.state_dict(), allow_nan=False)
            first = Curve()
            first.load_state_dict(json.loads(text))
        sight = first.update(row, loss)
        told += [(row, sight)] if sight else []
    assert told == seen(losses)


def test_in_training_it_judges_medians_and_only_warns(new_training: Any, vitals: Callable[..., Any]) -> None:
    drift, training, rng = Drift("diffusion", DriftConfig(every=10)), new_training(), random.Random(11)
    findings = []
    for step in range(1200):
        factor = 10 if step > 1000 or step == 500 else 1  # a single step is not the course of the run
        loss = factor * math.exp(rng.gauss(0, 0.2))
        findings.append(drift.inspect(training.view(vitals(iteration=step, step=step, loss=loss))))
    told = [(step, finding) for step, finding in enumerate(findings) if finding is not None]
    assert told
    assert 1000 < told[0][0] < 1050
    assert all(verdict_on(finding) is Verdict.PROCEED for _, finding in told)
