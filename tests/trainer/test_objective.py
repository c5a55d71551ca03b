"""The learning rate is a function of the applied updates, computed where they are counted."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from trainer.objective import OptimizerConfig, Schedule, fused_adamw


@pytest.mark.parametrize(("steps", "power", "floor"), [(50_000, 0.96, 5e-6), (100, 2.0, 0.1), (1, 0.5, 0.0)])
def test_the_learning_rate_falls_as_published(steps: int, power: float, floor: float) -> None:
    config = OptimizerConfig(lr=5e-5, power=power, floor=floor)
    schedule = Schedule(config, steps, torch.device("cpu"))
    places = np.unique(np.linspace(0, steps + 3, 60).astype(np.int64))
    found = [float(schedule.set_for(torch.tensor(place))) for place in places]
    remaining = np.maximum(1 - places / steps, 0)
    expected = (5e-5 * np.maximum(remaining**power, floor)).astype(np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # an ulp of float32 is 1.2e-7


def test_a_constant_schedule_stays() -> None:
    schedule = Schedule(OptimizerConfig(lr=0.25, schedule="constant"), 10, torch.device("cpu"))
    assert [float(schedule.set_for(torch.tensor(place))) for place in (0, 5, 10)] == [0.25] * 3


def test_a_refused_step_does_not_advance_the_learning_rate(lab: Any) -> None:
    def refuse(phase: Any, loop: Any) -> None:
        if phase == "measure" and loop.state.iteration in (4, 9):
            loop.model.head.weight.grad[0, 0, 0, 0] = torch.nan

    loop = lab.loop(steps=20, observers=[refuse])
    rates = []
    for _ in range(12):
        loop.step()
        rates.append((loop.last[0].step, loop.last[0].lr))
    steps = [0, 1, 2, 3, 3, 4, 5, 6, 7, 7, 8, 9]
    assert [step for step, _ in rates] == steps
    expected = np.float32(1e-3 * (1 - np.array(steps) / 20) ** 0.96)
    np.testing.assert_allclose([rate for _, rate in rates], expected, rtol=1e-6)
    assert float(loop.objectives[0].optimizer.param_groups[0]["lr"]) == rates[-1][1], "it is the one applied"


def test_moments_exist_before_the_first_step_and_nothing_has_moved() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = fused_adamw([parameter], OptimizerConfig(weight_decay=0.5), torch.tensor(0.1))
    assert parameter.tolist() == [1.0, -2.0]
    assert parameter.grad is None
    state = optimizer.state[parameter]
    assert {key: value.abs().max().item() for key, value in state.items()} == {
        "step": 0.0,
        "exp_avg": 0.0,
        "exp_avg_sq": 0.0,
    }


def test_training_is_that_of_plain_adamw(lab: Any) -> None:
    """The same gradients through torch's own clipping and AdamW in float64 give the same weights."""
    gradients: list[list[torch.Tensor]] = []

    def listen(phase: Any, loop: Any) -> None:
        if phase == "measure":
            gradients.append([p.grad.clone() for p in loop.model.parameters_of("denoiser")])

    loop = lab.loop(steps=12, observers=[listen])
    own = [p.detach().double().clone() for p in loop.model.parameters_of("denoiser")]
    lab.steps(loop, 12)
    optimizer = torch.optim.AdamW(own, lr=1e-3, weight_decay=1e-4)
    for step, of_step in enumerate(gradients):
        for parameter, gradient in zip(own, of_step, strict=True):
            parameter.grad = gradient.double()
        torch.nn.utils.clip_grad_norm_(own, 1.0)
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / 12) ** 0.96
        optimizer.step()
    for live, slow in zip(loop.model.parameters_of("denoiser"), own, strict=True):
        torch.testing.assert_close(live.detach().double(), slow, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("values", [{"betas": (0.9, 1.0)}, {"betas": (-0.1, 0.9)}, {"lr": 0}, {"floor": 2}])
def test_an_optimizer_that_cannot_be_is_refused_by_its_section(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        OptimizerConfig(**values)
