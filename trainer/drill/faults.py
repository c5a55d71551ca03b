"""Faults that can be injected into a running loop, from outside: observers that strike once.

A fault never touches a guard. It stands where the real one would: in a gradient, in a weight, in a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from trainer.loop import Loop, Phase


@dataclass
class Fault:
    """Does ``strike`` at the start of ``phase`` of step ``at_step``: once, even if the run comes by again."""

    at_step: int
    phase: Phase
    strike: Callable[[Loop], None]
    struck: bool = field(default=False, init=False)

    def __call__(self, phase: Phase, loop: Loop) -> None:
        """Called by the loop at the start of every phase."""
        if not self.struck and phase is self.phase and loop.state.step >= self.at_step:
            self.struck = True
            self.strike(loop)


def nan_gradient(at_step: int) -> Fault:
    """F09: one element of one gradient is NaN, once."""

    def strike(loop: Loop) -> None:
        gradient = largest_parameter(loop).grad
        assert gradient is not None, "measured right after backward"
        gradient.view(-1)[0] = torch.nan

    return Fault(at_step, Phase.MEASURE, strike)


def corrupt_weights(at_step: int, factor: float = 1000.0) -> Fault:
    """F20 for one tensor: weights that are finite, but a thousand times too large."""

    def strike(loop: Loop) -> None:
        with torch.no_grad():
            largest_parameter(loop).mul_(factor)

    return Fault(at_step, Phase.FETCH, strike)


def nan_weight(at_step: int) -> Fault:
    """F16: one weight is NaN."""

    def strike(loop: Loop) -> None:
        with torch.no_grad():
            largest_parameter(loop).view(-1)[0] = torch.nan

    return Fault(at_step, Phase.FETCH, strike)


def largest_parameter(loop: Loop) -> nn.Parameter:
    """The largest tensor that the loop's first objective trains."""
    held: list[Tensor] = [p for group in loop.objectives[0].optimizer.param_groups for p in group["params"]]
    largest = max(held, key=lambda parameter: parameter.numel())
    assert isinstance(largest, nn.Parameter)
    return largest
