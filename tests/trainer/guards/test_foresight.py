"""Signs that agree predict a divergence; one alone, a warm-up or a restart do not."""

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from shared.events import Finding, Severity
from trainer.guards.foresight import Foresight, ForesightConfig

LOOK_EVERY = 4


@pytest.fixture
def run(vitals: Callable[..., Any], new_training: Any) -> Callable[..., list[Finding]]:
    """Shows the guard steps of a healthy training, whose numbers ``change(step)`` multiplies."""
    watched = new_training()

    def show(
        guard: Foresight,
        steps: int,
        change: Callable[[int], dict[str, float]] = lambda step: {},
        first: int = 0,
    ) -> list[Finding]:
        found: list[Finding | None] = []
        for step in range(first, first + steps):
            rng = np.random.default_rng(step)
            factors = {"update_ratio": 1.0, "moment_lag": 1.0, "grad_norm": 1.0} | change(step)
            hard = rng.lognormal(0, 0.4)  # of a batch: norm and lag feel the same
            usual = {"update_ratio": 0.006 * rng.lognormal(0, 0.2), "moment_lag": hard, "grad_norm": hard / 2}
            numbers: dict[str, Any] = {name: usual[name] * factors[name] for name in usual}
            if step % LOOK_EVERY:
                numbers |= {"update_ratio": None, "moment_lag": None}
            seen = vitals(iteration=step, step=step, **numbers)
            found.append(guard.inspect(watched.view(seen)))
        return [one for one in found if one]

    return show


def ramp(begin: int, pace: float, *names: str) -> Callable[[int], dict[str, float]]:
    """These numbers grow tenfold in ``pace`` steps from ``begin`` on."""
    return lambda step: dict.fromkeys(names, 10 ** (max(0, step - begin) / pace))


def test_two_signs_that_agree_predict(run: Any) -> None:
    guard = Foresight("diffusion")
    assert run(guard, 1000) == []
    found = run(guard, 200, ramp(1000, 150, "moment_lag", "grad_norm"), first=1000)
    assert len(found) == 1
    assert found[0].severity is Severity.WARNING
    assert found[0].reading["predicts"] == "divergence"
    assert "gradient norm" in found[0].message
    assert found[0].step < 1150


def test_an_update_ratio_that_runs_away_predicts_alone(run: Any) -> None:
    guard = Foresight("diffusion")
    found = run(guard, 1100, ramp(1000, 150, "update_ratio"))
    assert [set(one.reading) - {"objective", "predicts"} for one in found] == [{"update_ratio"}]
    assert 1000 < found[0].step < 1100


@pytest.mark.parametrize("name", ["moment_lag", "grad_norm"])
def test_one_sign_alone_predicts_nothing(name: str, run: Any) -> None:
    assert run(Foresight("diffusion"), 1500, ramp(1000, 150, name)) == []


def test_tiny_updates_may_grow(run: Any) -> None:
    """A ratio far below a hundredth turns nothing over, however fast it grows."""
    grown = lambda step: {"update_ratio": 0.01 * min(10 ** (max(0, step - 600) / 150), 100)}  # noqa: E731
    assert run(Foresight("diffusion"), 1500, grown) == []


@pytest.mark.parametrize("warm_up", [100, 500, 2000])
def test_a_warm_up_from_the_start_is_no_divergence(warm_up: int, run: Any) -> None:
    warm = lambda step: {"update_ratio": 4 * min(1.0, (step + 1) / warm_up)}  # noqa: E731
    assert run(Foresight("diffusion"), 3000, warm) == []


def test_a_few_hard_batches_are_no_divergence(run: Any) -> None:
    hard = lambda step: dict.fromkeys(("moment_lag", "grad_norm"), 4.0) if 1000 <= step < 1008 else {}  # noqa: E731
    assert run(Foresight("diffusion"), 1500, hard) == []


def test_a_new_level_is_learned_and_told_no_more(run: Any) -> None:
    guard = Foresight("diffusion")
    risen = lambda step: dict.fromkeys(("moment_lag", "grad_norm"), 4.0) if step >= 1000 else {}  # noqa: E731
    found = run(guard, 4000, risen)
    assert len(found) == 1
    again = lambda step: dict.fromkeys(("moment_lag", "grad_norm"), 16.0)  # noqa: E731
    assert len(run(guard, 200, again, first=4000)) == 1


def test_overflows_are_a_sign(vitals: Callable[..., Any], new_training: Any, run: Any) -> None:
    guard = Foresight("diffusion")
    run(guard, 1000)
    view = new_training().view
    for _ in range(11):
        skipped = vitals(refused=True, reason="overflow", grad_norm=math.inf, loss_scale=1024.0)
        assert guard.inspect(view(skipped)) is None
    found = run(guard, 100, ramp(1000, 150, "grad_norm"), first=1000)
    assert len(found) == 1
    assert "11 overflows" in found[0].message


def test_it_sees_the_same_with_a_memory_that_was_saved(run: Any) -> None:
    worse = ramp(1000, 150, "update_ratio", "grad_norm")

    def messages(steps: Iterator[Finding]) -> list[str]:
        return [one.message for one in steps]

    whole, first = Foresight("diffusion"), Foresight("diffusion")
    expected = messages(run(whole, 1200, worse))
    assert messages(run(first, 1002, worse)) == []
    second = Foresight("diffusion")
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert messages(run(second, 198, worse, first=1002)) == expected
    assert second.state_dict() == whole.state_dict()


def test_numbers_that_are_none_teach_nothing(vitals: Callable[..., Any], new_training: Any) -> None:
    guard, view = Foresight("diffusion", ForesightConfig(warm_up=16)), new_training().view
    empty = guard.state_dict()["signs"]
    for ratio in (0.0, math.inf):
        guard.inspect(view(vitals(update_ratio=ratio, moment_lag=0.0, grad_norm=math.nan)))
    assert guard.state_dict()["signs"] == empty
    guard.inspect(view(vitals(objective="critic", update_ratio=0.1)))
    assert guard.state_dict()["signs"] == empty
