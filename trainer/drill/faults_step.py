"""Faults of one step: its loss and its gradients."""

import math
from dataclasses import replace
from typing import Any, cast

import torch

from trainer.drill.faults import Fault, gradients, largest_parameter, trained
from trainer.loop import Loop
from trainer.passes import Phase


def loss_times(at_step: int, factor: float) -> Fault:
    """The loss, and with it every gradient, times ``factor``: NaN, infinite, or merely large."""

    def strike(loop: Loop) -> None:
        losses = cast(Any, loop.losses)
        loop.losses = replace(losses, total=losses.total * factor)

    return Fault(at_step, Phase.BACKWARD, strike)


def nan_loss(at_step: int) -> Fault:
    """F07."""
    return loss_times(at_step, math.nan)


def infinite_loss(at_step: int) -> Fault:
    """F08."""
    return loss_times(at_step, math.inf)


def infinite_gradient(at_step: int) -> Fault:
    """F10: one tensor's gradient is infinite in every element."""

    def strike(loop: Loop) -> None:
        gradient = largest_parameter(loop).grad
        assert gradient is not None
        gradient.fill_(math.inf)

    return Fault(at_step, Phase.MEASURE, strike)


def huge_gradients(at_step: int) -> Fault:
    """R13: every element is 1e20, so each is finite and their norm is not."""

    def strike(loop: Loop) -> None:
        for gradient in gradients(loop):
            gradient.fill_(1e20)

    return Fault(at_step, Phase.MEASURE, strike)


def gradients_times(at_step: int, factor: float, times: int = 1) -> Fault:
    """F12, F13, F14: all gradients times ``factor`` in ``times`` batches."""

    def strike(loop: Loop) -> None:
        torch._foreach_mul_(gradients(loop), factor)

    return Fault(at_step, Phase.MEASURE, strike, times)


def missing_gradient(at_step: int) -> Fault:
    """F15: from now on one layer gets no gradient, as if it had been detached."""

    def strike(loop: Loop) -> None:
        names = {parameter: name for name, parameter in loop.model.named_parameters()}
        layer = names[largest_parameter(loop)].rpartition(".")[0]
        for parameter in trained(loop):
            if names[parameter].rpartition(".")[0] == layer:
                parameter.grad = None

    return Fault(at_step, Phase.MEASURE, strike, times=1_000_000)
