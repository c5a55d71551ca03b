"""Faults of what outlives a step: weights, buffers, frozen parts, the average."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from trainer.drill.faults import Fault, Ground, largest_parameter, trained
from trainer.loop import Loop
from trainer.passes import Phase


def between_steps(at_step: int, change: Callable[[Loop], None]) -> Fault:
    """``change`` happens to the state at rest, without a gradient."""

    def strike(loop: Loop) -> None:
        with torch.no_grad():
            change(loop)

    return Fault(at_step, Phase.FETCH, strike)


@dataclass
class LaunderedNan:
    """F17: a NaN weight in a layer whose output goes through ``nan_to_num``: the loss stays finite."""

    at_step: int
    struck_at: int | None = field(default=None, init=False)

    def inject(self, ground: Ground) -> None:
        """Train with the laundering layer in place."""
        ground.train([between_steps(self.at_step, self._strike)])

    def _strike(self, loop: Loop) -> None:
        weight = largest_parameter(loop)
        layer = next(m for m in loop.model.modules() if any(weight is p for p in m.parameters(recurse=False)))
        layer.register_forward_hook(_launder)
        self.struck_at = loop.number
        weight.view(-1)[0] = math.nan


def _launder(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return torch.nan_to_num(output)


def flipped_bit(at_step: int, bit: int) -> Fault:
    """F18, F19: one bit of one weight; of a float32, bits 0 to 22 are mantissa and 23 to 30 exponent."""

    def change(loop: Loop) -> None:
        words = largest_parameter(loop).view(-1)[:1].view(torch.int32)
        words.bitwise_xor_(torch.tensor(1 << bit, dtype=torch.int32))

    return between_steps(at_step, change)


def all_weights_times(at_step: int, factor: float) -> Fault:
    """F20: every trained weight."""
    return between_steps(at_step, lambda loop: torch._foreach_mul_([*trained(loop)], factor))


def flipped_sign(at_step: int) -> Fault:
    """F21: of one whole tensor."""

    def change(loop: Loop) -> None:
        largest_parameter(loop).neg_()

    return between_steps(at_step, change)


def average_is_nan(at_step: int) -> Fault:
    """F29: one element of the moving average."""

    def change(loop: Loop) -> None:
        next(iter(loop.state.ema.tensors.values())).view(-1)[0] = math.nan

    return between_steps(at_step, change)


def idle_average(at_step: int) -> Fault:
    """F30: three updates that the moving average never hears of."""

    def strike(loop: Loop) -> None:
        ema = loop.state.ema
        known = ema.update

        def deaf(possible: range, number: Tensor, refused: Tensor) -> None:
            ema.update = known  # type: ignore[method-assign]

        ema.update = deaf  # type: ignore[method-assign]

    return Fault(at_step, Phase.UPDATE, strike, times=3)


def eager_average(at_step: int) -> Fault:
    """F30, the other way: the average takes in a step that was refused."""

    def strike(loop: Loop) -> None:
        ema = loop.state.ema
        known = ema.update

        def deaf_to_refusals(possible: range, number: Tensor, refused: Tensor) -> None:
            known(possible, number, torch.zeros_like(refused))
            ema.update = known  # type: ignore[method-assign]

        ema.update = deaf_to_refusals  # type: ignore[method-assign]
        gradient = largest_parameter(loop).grad
        assert gradient is not None
        gradient.view(-1)[0] = math.nan

    return Fault(at_step, Phase.MEASURE, strike)


def average_of_broken_weights(at_step: int) -> Fault:
    """R09: the average takes in weights that are NaN at that moment, and are well again after it."""

    def strike(loop: Loop) -> None:
        ema = loop.state.ema
        known, weight = ema.update, largest_parameter(loop)

        def unlucky(possible: range, number: Tensor, refused: Tensor) -> None:
            ema.update = known  # type: ignore[method-assign]
            with torch.no_grad():
                well = weight.view(-1)[0].clone()
                weight.view(-1)[0] = math.nan
                known(possible, number, refused)
                weight.view(-1)[0] = well

        ema.update = unlucky  # type: ignore[method-assign]

    return Fault(at_step, Phase.UPDATE, strike)


def last_bias_is_nan(at_step: int) -> Fault:
    """R15: a bias at the very end, whose NaN no gradient of another layer shows."""

    def change(loop: Loop) -> None:
        named = loop.model.named_parameters()
        *_, last = (one for name, one in named if name.endswith("bias") and one.requires_grad)
        last.view(-1)[0] = math.nan

    return between_steps(at_step, change)


def in_evaluation_mode(at_step: int) -> Fault:
    """R22: somebody validated and did not put the mode back: statistics stand still, dropout is off."""
    return Fault(at_step, Phase.FETCH, lambda loop: _set_mode(loop.model, False))


def autoencoder_in_training_mode(at_step: int) -> Fault:
    """R22: the frozen part draws and counts as if it were trained."""
    return Fault(at_step, Phase.FETCH, lambda loop: _set_mode(loop.model.get_submodule("autoencoder"), True))


def _set_mode(module: nn.Module, is_training: bool) -> None:
    for one in module.modules():
        one.training = is_training


def scale_factor_is(at_step: int, value: float) -> Fault:
    """F31, F32: the constant that scales the latents."""

    def change(loop: Loop) -> None:
        dict(loop.model.named_buffers())["scale_factor"].fill_(value)

    return between_steps(at_step, change)


def frozen_weight_moves(at_step: int) -> Fault:
    """F33: one weight of the frozen autoencoder changes a little."""

    def change(loop: Loop) -> None:
        frozen = next(p for p in loop.model.parameters() if not p.requires_grad)
        frozen.view(-1)[0] += 0.01

    return between_steps(at_step, change)
