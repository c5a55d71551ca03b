"""A loss that is cut off from the weights ends the run with the layer's name; a passing gap does not."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from shared.events import Finding, Severity
from trainer.errors import RunStopped
from trainer.guards.base import StepView, Verdict, Vitals, Watched, verdict_on
from trainer.guards.gradients import Gradients, GradientsConfig
from trainer.guards.vitals import Meter

CONFIG = GradientsConfig(known_after=8)


@pytest.fixture
def asked(vitals: Callable[..., Vitals]) -> Callable[..., list[Finding]]:
    """What a guard says of steps of which each misses the gradients of these parameters."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = SGD(model.parameters(), lr=0.1)
    watched = Watched(model, {"diffusion": optimizer, "critic": optimizer})

    def ask(guard: Gradients, steps: Sequence[Sequence[int]], **changes: Any) -> list[Finding]:
        views = [StepView(vitals(missing=tuple(one), **changes), (), watched) for one in steps]
        return [found for view in views if (found := guard.inspect(view)) is not None]

    return ask


def test_three_gradients_of_exactly_zero_end_the_run(asked: Any) -> None:
    guard = Gradients(CONFIG)
    assert asked(guard, [()] * 2, grad_norm=0.0) == []
    (found,) = asked(guard, [()] * 9, grad_norm=0.0)
    assert verdict_on(found) is Verdict.STOP
    assert "every gradient has been exactly 0 for 3 steps" in found.message


def test_a_gradient_of_zero_now_and_then_is_no_end(asked: Any) -> None:
    guard = Gradients(CONFIG)
    for _ in range(20):
        assert asked(guard, [()] * 2, grad_norm=0.0) == []
        assert asked(guard, [()], grad_norm=1e-30) == []


def test_a_loss_that_is_zero_explains_a_gradient_of_zero(asked: Any) -> None:
    assert asked(Gradients(CONFIG), [()] * 50, grad_norm=0.0, loss=0.0, objective="critic") == []


def test_a_critic_that_has_won_is_told_and_ends_nothing(asked: Any) -> None:
    (found,) = asked(Gradients(CONFIG), [()] * 50, grad_norm=0.0, objective="critic")
    assert found.severity is Severity.WARNING


def test_a_layer_that_loses_its_gradient_ends_the_run_and_is_named(asked: Any) -> None:
    guard = Gradients(CONFIG)
    assert asked(guard, [*[()] * 20, (2, 3), (2, 3)]) == []
    (found,) = asked(guard, [(2, 3)] * 5)
    assert verdict_on(found) is Verdict.STOP
    assert "1 (weight, bias) gets no gradient any more, 3 steps in a row" in found.message


@pytest.mark.parametrize("way", [[(2,), ()], [(2, 3), (2, 3), ()], [(), (), (), (0,), (0,)]])
def test_a_layer_that_is_passed_over_at_times_is_never_told(asked: Any, way: Any) -> None:
    assert asked(Gradients(CONFIG), way * 40) == []


def test_a_parameter_that_never_had_a_gradient_is_told_once(asked: Any) -> None:
    (found,) = asked(Gradients(CONFIG), [(1,)] * 50)
    assert found.severity is Severity.WARNING
    assert "0 (bias) had no gradient in the first 8 steps" in found.message


def test_the_count_goes_on_after_a_resume(asked: Any) -> None:
    guard, other = Gradients(CONFIG), Gradients(CONFIG)
    asked(guard, [*[()] * 10, (0,), (0,)])
    other.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert len(asked(other, [(0,)])) == 1


def frozen_for(asked: Any, guard: Gradients, steps: int) -> list[Finding]:
    return list(asked(guard, [()] * steps, frozen=(2, 3)))


def test_a_layer_that_is_frozen_on_purpose_is_no_fault_at_any_time(asked: Any) -> None:
    guard = Gradients(CONFIG)
    assert asked(guard, [()] * 20) == []
    assert frozen_for(asked, guard, 50) == []
    assert asked(guard, [()] * 50) == [], "nor when it thaws"


def test_a_layer_that_was_frozen_from_the_start_is_not_told_as_one_without_gradients(asked: Any) -> None:
    assert frozen_for(asked, Gradients(CONFIG), 50) == []


def test_a_layer_that_thaws_is_known_after_a_while_and_then_missed(asked: Any) -> None:
    guard = Gradients(CONFIG)
    frozen_for(asked, guard, 20)
    assert asked(guard, [()] * 8) == []
    (found,) = asked(guard, [(2, 3)] * 3)
    assert verdict_on(found) is Verdict.STOP


def test_a_layer_that_thaws_and_has_no_gradient_then_is_left_alone(asked: Any) -> None:
    guard = Gradients(CONFIG)
    frozen_for(asked, guard, 20)
    assert asked(guard, [(2, 3)] * 50) == []


def test_a_layer_is_frozen_in_the_middle_of_a_gap_and_the_memory_of_it_survives(asked: Any) -> None:
    guard, other = Gradients(CONFIG), Gradients(CONFIG)
    assert asked(guard, [*[()] * 20, (2, 3), (2, 3)]) == []
    frozen_for(asked, guard, 5)
    other.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert asked(other, [*[()] * 4, (2, 3)]) == []
    assert asked(other, [()] * 20) == []


def test_a_meter_tells_the_frozen_from_those_whose_gradient_is_missing(losses: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = SGD(model.parameters(), lr=0.1, fused=True)
    meter = Meter("diffusion", optimizer, model.parameters(), max_norm=1.0)
    model[0].requires_grad_(False)
    loss = (torch.ones(2) @ model[1].weight).sum()
    loss.backward()
    meter.measure(losses(loss.detach()))
    meter.step()
    meter.settle(0.1)
    (vitals,) = meter.arrived()
    assert (vitals.missing, vitals.frozen) == ((3,), (0, 1))


def test_a_run_whose_layer_is_cut_off_stops_and_says_which(lab: Any) -> None:
    def cut_off(phase: Any, loop: Any) -> None:
        if phase == "measure" and loop.state.step >= 34:
            loop.model.inner[0].weight.grad = None

    with pytest.raises(RunStopped, match=r"inner.0 \(weight\) gets no gradient any more"):
        lab.run(steps=60, observers=[cut_off])
    (report,) = lab.root.rglob("stopped.txt")
    assert "something cuts it off the loss" in report.read_text()
