import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from shared.events import Finding, Severity
from trainer.guards.adam import cauchy, reach
from trainer.guards.base import Vitals, Watched
from trainer.guards.invariants import Invariants, InvariantsConfig, fingerprint


def look(training: Any, vitals: Callable[..., Vitals]) -> Finding | None:
    """What a scan on alarm says now; the viewed step adds nothing to the path."""
    view = training.view(vitals(refused=True, reason="spike"), alarm=True)
    finding: Finding | None = training.invariants.inspect(view)
    return finding


@pytest.mark.parametrize("lr", [1e-4, 1e-2])
def test_adams_bound_is_silent_in_250_healthy_steps(lr: float, new_training: Any) -> None:
    training = new_training(lr=lr)
    guard = Invariants(InvariantsConfig(scan_every=1), late=0)
    guard.rebase(training.watched)
    for _ in range(250):
        training.update()
        (vitals,) = training.meter.arrived()
        assert guard.inspect(training.view(vitals, alarm=True)) is None


@pytest.mark.parametrize("factor", [1000.0, 3.0, 1e30, math.nan])
def test_a_weight_that_moved_further_than_adam_can_is_corrupt(
    factor: float, new_training: Any, vitals: Callable[..., Vitals]
) -> None:
    training = new_training()
    for _ in range(20):
        training.step()
    assert look(training, vitals) is None
    training.parameters[0].data.mul_(factor)
    finding = look(training, vitals)
    assert finding is not None
    assert finding.severity is Severity.CRITICAL
    assert finding.message.startswith("weights moved further than Adam can: inner.0.weight, ")
    assert (finding.reading["problems"], finding.reading["first"]) == (1, "inner.0.weight")


def test_after_a_rollback_motion_counts_from_the_restored_state(
    new_training: Any, vitals: Callable[..., Vitals]
) -> None:
    training = new_training()
    training.step()
    training.parameters[0].data.mul_(1000)
    training.panel.rebase(training.watched)
    assert look(training, vitals) is None


def test_a_loaded_guard_without_rebase_does_not_compare_with_another_run(
    new_training: Any, vitals: Callable[..., Vitals]
) -> None:
    training = new_training()
    training.step()
    training.parameters[0].data.mul_(1000)
    training.panel.load_state_dict(training.panel.state_dict())
    assert look(training, vitals) is None
    training.parameters[0].data.mul_(1000)
    assert look(training, vitals) is not None


def flip_sign(tensor: torch.Tensor) -> None:
    tensor.neg_()


def flip_one_bit(tensor: torch.Tensor) -> None:
    bits = tensor.view(torch.int32)
    bits.view(-1)[0] ^= 1


@pytest.mark.parametrize("damage", [flip_sign, flip_one_bit])
@pytest.mark.parametrize("name", ["encoder.weight", "scale_factor"])
def test_a_constant_that_changed_is_corrupt(
    name: str, damage: Any, new_training: Any, vitals: Callable[..., Vitals]
) -> None:
    training = new_training()
    training.step()
    assert look(training, vitals) is None
    damage(training.model.state_dict()[name])
    finding = look(training, vitals)
    assert finding is not None
    assert f"a constant has changed: {name}" in finding.message


def test_a_rollback_does_not_make_a_changed_constant_right(
    new_training: Any, vitals: Callable[..., Vitals]
) -> None:
    training = new_training()
    training.model.scale_factor.fill_(0.18215)
    training.panel.rebase(training.watched)
    assert look(training, vitals) is not None


def test_a_constant_is_known_again_after_a_resume(new_training: Any, vitals: Callable[..., Vitals]) -> None:
    saved = json.loads(json.dumps(new_training().panel.state_dict(), allow_nan=False))
    same, other = new_training(), new_training()
    other.model.scale_factor.fill_(1.0)
    for training in (same, other):
        training.panel.load_state_dict(saved)
        training.panel.rebase(training.watched)
    assert look(same, vitals) is None
    assert look(other, vitals) is not None


def test_which_buffers_are_constant_can_be_said(new_training: Any, vitals: Callable[..., Vitals]) -> None:
    training = new_training()
    training.invariants = Invariants(is_constant=lambda name: False)
    training.invariants.rebase(training.watched)
    training.model.scale_factor.fill_(2.0)
    assert look(training, vitals) is None


def wipe(state: dict[str, torch.Tensor]) -> None:
    state["exp_avg_sq"].zero_()


def negate(state: dict[str, torch.Tensor]) -> None:
    state["exp_avg_sq"].neg_()


def inflate(state: dict[str, torch.Tensor]) -> None:
    state["exp_avg"].view(-1)[0] = 1e20


@pytest.mark.parametrize("damage", [wipe, negate, inflate])
def test_moments_that_no_gradients_made_are_corrupt(
    damage: Any, new_training: Any, vitals: Callable[..., Vitals]
) -> None:
    training = new_training()
    for _ in range(5):
        training.step()
    damage(training.optimizer.state[training.parameters[0]])
    finding = look(training, vitals)
    assert finding is not None
    assert "moments that are not a mean of any gradients: inner.0.weight" in finding.message


def averaging(new_training: Any, steps: int) -> Any:
    """A training whose average is known by the names of the model's parameters."""
    training = new_training()
    training.watched.ema = {f"inner.{name}": average for name, average in training.ema.items()}
    training.invariants.rebase(training.watched)
    for _ in range(steps):
        assert training.step().findings == ()
    return training


def test_an_average_that_follows_is_within_its_hull_at_every_step(
    new_training: Any, vitals: Callable[..., Vitals]
) -> None:
    training = averaging(new_training, 30)
    for _ in range(100):
        training.step()
        assert look(training, vitals) is None


@pytest.mark.parametrize("damage", [lambda e: e.neg_(), lambda e: e.mul_(3), lambda e: e[0, 0].fill_(9)])
def test_an_average_that_left_its_hull_is_corrupt(
    damage: Any, new_training: Any, vitals: Callable[..., Vitals]
) -> None:
    training = averaging(new_training, 30)
    assert look(training, vitals) is None
    damage(training.ema["0.weight"])
    found = look(training, vitals)
    assert found is not None
    assert "averages are further from their weights than updates explain: inner.0.weight, " in found.message


@pytest.mark.parametrize("later", [1, 20, 60])
def test_a_second_moment_that_was_forgotten_is_seen_steps_later(
    later: int, new_training: Any, vitals: Callable[..., Vitals]
) -> None:
    """Its own bound no longer shows it by then: new gradients have made a new one."""
    training = new_training()
    for _ in range(100):
        assert training.step().findings == ()
    assert look(training, vitals) is None
    wipe(training.optimizer.state[training.parameters[0]])
    for _ in range(later):
        training.update()
    steps = training.meter.arrived()
    for seen in steps[:-1]:
        training.invariants.inspect(training.view(seen))
    found = training.invariants.inspect(training.view(steps[-1], alarm=True))
    assert found is not None
    assert "a second moment was forgotten: inner.0.weight, " in found.message


@pytest.mark.parametrize("lr", [math.nan, math.inf, -1e-3])
def test_a_learning_rate_that_is_none_is_corrupt(
    lr: float, new_training: Any, vitals: Callable[..., Vitals]
) -> None:
    finding = Invariants().inspect(new_training().view(vitals(lr=lr)))
    assert finding is not None
    assert "learning rate" in finding.message


def adversarial(beta1: float, beta2: float, steps: int) -> np.ndarray:
    """Gradients that make Adam move as far as it can in the last step: by equality in Cauchy-Schwarz."""
    return (beta2 / beta1) ** np.arange(steps, dtype=np.float64)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95), (0.5, 0.9), (0.0, 0.99)])
def test_the_bound_is_reached_and_never_passed(betas: tuple[float, float]) -> None:
    beta1, beta2 = betas
    gradients = adversarial(beta1, beta2, 150) if beta1 else np.ones(150)
    first = second = 0.0
    furthest = largest = 0.0
    for step, gradient in enumerate(gradients, start=1):
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        largest = max(largest, first / math.sqrt(second))
        furthest = max(furthest, first / math.sqrt(second) * math.sqrt(1 - beta2**step) / (1 - beta1**step))
    assert 0.9 * cauchy(*betas) < largest < 1.0001 * cauchy(*betas) or beta1 == 0
    assert furthest <= 1.0001 * reach(*betas)


def test_the_bound_of_the_usual_betas_is_that_of_the_literature() -> None:
    assert reach(0.9, 0.999) == pytest.approx(7.27, abs=0.01)
    assert reach(0.99, 0.9) == math.inf


@pytest.mark.parametrize(
    "make",
    [
        lambda p: AdamW(p, lr=0.1, weight_decay=0.5, fused=True),
        lambda p: Adam(p, lr=0.1, weight_decay=0.5, fused=True),
        lambda p: AdamW(p, lr=torch.tensor(0.1), fused=True),
        lambda p: AdamW([{"params": p[:1], "lr": 0.5}, {"params": p[1:]}], lr=0.01, fused=True),
    ],
)
def test_decay_groups_and_rates_on_the_device_raise_no_alarm(
    make: Any, vitals: Callable[..., Vitals]
) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = make(list(model.parameters()))
    watched = Watched(model, {"diffusion": optimizer})
    guard = Invariants(late=0)
    guard.rebase(watched)
    for step in range(60):
        optimizer.zero_grad()
        (model(torch.ones(3)).sum() * 1.1**step).backward()
        optimizer.step()
        seen = guard.inspect(_view(vitals(lr=0.1, iteration=step), watched))
        assert seen is None, (step, seen)


def test_other_optimizers_have_no_bound(vitals: Callable[..., Vitals]) -> None:
    model = nn.Linear(3, 2)
    watched = Watched(model, {"diffusion": SGD(model.parameters(), lr=1.0, momentum=0.9, fused=True)})
    guard = Invariants()
    guard.rebase(watched)
    model.weight.data.mul_(1e6)
    assert guard.inspect(_view(vitals(), watched)) is None


def _view(vitals: Vitals, watched: Watched) -> Any:
    from trainer.guards.base import StepView

    return StepView(vitals, (), watched, alarm=True)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(100),
        torch.randn(3, 4).to(torch.bfloat16),
        torch.randn(5).double(),
        torch.arange(7),
        torch.tensor(0.3),
        torch.tensor([True, False]),
        torch.randn(4, dtype=torch.complex64),
        torch.randn(6, 4).t(),
    ],
)
def test_a_fingerprint_sees_any_single_element(tensor: torch.Tensor) -> None:
    before = int(fingerprint(tensor))
    changed = tensor.clone()
    flat = changed.view(-1) if changed.is_contiguous() else changed.reshape(-1)
    flat[0] = ~flat[0] if tensor.dtype == torch.bool else -flat[0] if flat[0] != 0 else flat[0] + 1
    assert int(fingerprint(tensor.clone())) == before
    assert int(fingerprint(flat)) != before


def test_many_tensors_with_one_trouble_are_told_once_and_counted(
    new_training: Any, vitals: Callable[..., Vitals]
) -> None:
    training = new_training()
    for _ in range(20):
        training.step()
    assert look(training, vitals) is None
    for parameter in training.parameters:
        parameter.data.mul_(100)
    finding = look(training, vitals)
    assert finding is not None
    assert finding.message.startswith("weights moved further than Adam can: ")
    assert finding.message.count("moved further") == 1
    number = int(finding.reading["problems"])
    told = finding.message.count("is the most")
    assert told == min(number, 3)
    assert finding.message.endswith(f"; and {number - told} more") is (number > told)
