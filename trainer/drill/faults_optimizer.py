"""Faults of the optimizer: its moments, its counters, its learning rate."""

import torch
from torch import Tensor

from trainer.drill.faults import Fault, largest_parameter, trained
from trainer.drill.faults_state import between_steps
from trainer.loop import Loop
from trainer.passes import Phase


def moment(loop: Loop, key: str) -> Tensor:
    """One moment of the largest trained tensor."""
    found: Tensor = loop.objectives[0].optimizer.state[largest_parameter(loop)][key]
    return found


def first_moment_is(at_step: int, value: float) -> Fault:
    """F22, F23: one element of it."""

    def change(loop: Loop) -> None:
        moment(loop, "exp_avg").view(-1)[0] = value

    return between_steps(at_step, change)


def second_moment_times(at_step: int, factor: float) -> Fault:
    """F24: of one tensor; 0 forgets it, -1 turns it below zero."""

    def change(loop: Loop) -> None:
        moment(loop, "exp_avg_sq").mul_(factor)

    return between_steps(at_step, change)


def step_count_reset(at_step: int) -> Fault:
    """F25: the optimizer believes that it has just begun."""

    def change(loop: Loop) -> None:
        for parameter in trained(loop):
            loop.objectives[0].optimizer.state[parameter]["step"].zero_()

    return between_steps(at_step, change)


def learning_rate_is(at_step: int, value: float) -> Fault:
    """F26: somebody sets the rate of the group, past the schedule."""

    def strike(loop: Loop) -> None:
        for group in loop.objectives[0].optimizer.param_groups:
            group["lr"] = torch.tensor(value)

    return Fault(at_step, Phase.MEASURE, strike)


def learning_rate_times(at_step: int, factor: float) -> Fault:
    """R08: the rate of the group is another one, finite, and only too high."""

    def strike(loop: Loop) -> None:
        for group in loop.objectives[0].optimizer.param_groups:
            group["lr"] = torch.as_tensor(group["lr"]) * factor

    return Fault(at_step, Phase.MEASURE, strike)


def schedule_steps_twice(at_step: int) -> Fault:
    """F27: an update is counted twice, and the schedule is one ahead from then on."""
    return between_steps(at_step, lambda loop: _ahead(loop))


def _ahead(loop: Loop) -> None:
    loop.objectives[0].meter.applied.add_(1)
