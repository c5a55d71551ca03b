"""What every guard keeps: silent on a healthy run, loud on its fault, memory that survives, no idle reads."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from trainer.guards.base import Guard, Verdict
from trainer.guards.counters import Counters
from trainer.guards.drift import Drift
from trainer.guards.foresight import Foresight, ForesightConfig
from trainer.guards.gradients import Gradients
from trainer.guards.invariants import Invariants
from trainer.guards.nonfinite import Nonfinite
from trainer.guards.panel import Panel
from trainer.guards.saturation import Saturation
from trainer.guards.spike import Spike


@dataclass(frozen=True)
class Case:
    make: Callable[[], Guard]
    break_it: Callable[[Any], None]
    verdict: Verdict
    reads_a_scan: int


def nan_gradient(training: Any) -> None:
    training.break_gradients = lambda t: t.parameters[0].grad.view(-1)[0].fill_(math.nan)


def huge_gradient(training: Any) -> None:
    training.break_gradients = lambda t: [p.grad.mul_(1e4) for p in t.parameters]


def wrong_constant(training: Any) -> None:
    training.model.scale_factor.fill_(0.18215)
    training.break_gradients = lambda t: t.parameters[0].grad.view(-1)[0].fill_(math.nan)


def vanishing_gradient(training: Any) -> None:
    """Zero in thirty steps, three points of the curve; all but the last are taken here."""
    for left in reversed(range(30)):
        training.break_gradients = lambda t: [p.grad.zero_() for p in t.parameters]
        if left:
            assert training.step().findings == ()


def zero_gradients(training: Any) -> None:
    """In three steps; all but the last are taken here."""
    for left in reversed(range(3)):
        training.break_gradients = lambda t: [p.grad.zero_() for p in t.parameters]
        if left:
            assert training.step().findings == ()


def stepped_twice(training: Any) -> None:
    training.meter.applied.add_(1)


def clamped_part(training: Any) -> None:
    """Exactly one value in fifty steps; all but the last are taken here."""
    forward = training.model.forward

    def clamped(*batch: Any) -> Any:
        losses = forward(*batch)
        losses.parts = {"simple": torch.tensor(7.0)}
        return losses

    training.model.forward = clamped
    for _ in range(49):
        assert training.step().findings == ()


def runaway_updates(training: Any) -> None:
    """Updates of half a weight for three looks, the last of which is left to come."""
    for group in training.optimizer.param_groups:
        group["lr"] = 0.1
    for _ in range(8):
        assert training.step().findings == ()


CASES = {
    "nonfinite": Case(Nonfinite, nan_gradient, Verdict.SKIP_STEP, 1),
    "spike": Case(lambda: Spike("diffusion"), huge_gradient, Verdict.SKIP_STEP, 0),
    "drift": Case(lambda: Drift("diffusion"), vanishing_gradient, Verdict.PROCEED, 0),
    "foresight": Case(
        lambda: Foresight("diffusion", ForesightConfig(warm_up=16)), runaway_updates, Verdict.PROCEED, 0
    ),
    "invariants": Case(Invariants, wrong_constant, Verdict.ROLL_BACK, 1),
    "counters": Case(Counters, stepped_twice, Verdict.ROLL_BACK, 1),
    "gradients": Case(Gradients, zero_gradients, Verdict.STOP, 0),
    "saturation": Case(Saturation, clamped_part, Verdict.PROCEED, 0),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def trained_with(guard: Guard, training: Any, steps: int) -> Panel:
    """Train ``steps`` steps under this guard alone; it must find nothing."""
    panel = Panel([guard])
    if isinstance(guard, Spike):
        training.meter._limits = guard.limits
    panel.rebase(training.watched)
    training.panel = panel
    for _ in range(steps):
        assert training.step().findings == ()
    return panel


def test_it_is_silent_on_a_healthy_run_and_fires_on_its_fault(case: Case, new_training: Any) -> None:
    training = new_training()
    trained_with(case.make(), training, steps=300)
    case.break_it(training)
    judgement = training.step()
    assert judgement.verdict is case.verdict
    assert len(judgement.findings) == 1


def test_its_memory_survives_a_round_trip(case: Case, new_training: Any) -> None:
    training, guard = new_training(), case.make()
    trained_with(guard, training, steps=120)
    text = json.dumps(guard.state_dict(), allow_nan=False)
    other = case.make()
    other.load_state_dict(json.loads(text))
    assert json.dumps(other.state_dict()) == text
    trained_with(other, training, steps=20)
    case.break_it(training)
    assert training.step().verdict is case.verdict


def test_it_reads_nothing_between_scans_and_no_more_than_allowed_in_one(
    case: Case, new_training: Any, vitals: Any, device_reads: Any, host_reads: Any
) -> None:
    training, guard = new_training(), case.make()
    trained_with(guard, training, steps=3)
    with device_reads, host_reads:
        guard.inspect(training.view(vitals(iteration=50, step=3)))
    assert (device_reads.seen, host_reads.seen) == ([], [])
    with host_reads:
        guard.inspect(training.view(vitals(iteration=100, step=4)))
        guard.inspect(training.view(vitals(iteration=100, step=5)))  # the second objective of the same batch
    assert len(host_reads.seen) == case.reads_a_scan


def test_all_together_are_silent_and_survive_their_faults(new_training: Any) -> None:
    training = new_training()
    for _ in range(400):
        assert training.step().findings == ()
    for fault, guards in ((nan_gradient, {"nonfinite"}), (huge_gradient, {"spike"})):
        fault(training)
        judgement = training.step()
        assert judgement.verdict is Verdict.SKIP_STEP
        assert {finding.guard for finding in judgement.findings} == guards
        assert training.step().findings == ()
    assert all(torch.isfinite(tensor).all() for tensor in training.model.state_dict().values())


def test_two_runs_with_the_same_seed_are_equal_to_the_bit(new_training: Any) -> None:
    runs = [new_training(seed=3) for _ in range(2)]
    for training in runs:
        for _ in range(120):
            training.step()
    first, second = (training.model.state_dict().values() for training in runs)
    assert all(map(torch.equal, first, second))
    assert torch.equal(runs[0].spike.limits.table, runs[1].spike.limits.table)
