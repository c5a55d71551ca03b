"""Faults of float16: a loss scale that is not there, logits and gradients beyond its range."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainer.drill.faults import Fault, Ground, largest_parameter
from trainer.drill.faults_state import between_steps
from trainer.loop import Loop
from trainer.passes import Phase

FLOAT16 = {"diffusion.training.precision": "fp16"}
OFTEN_COUNTED = {
    **FLOAT16,
    "guards.underflow.count_every": 5,
    "guards.underflow.more_than_usual": 0.01,
}
"""Counted often, and by a finer measure: so small a model loses 2 to 4 % of its gradient, upstream 20 %."""
_OVERFLOWS = 64.0
"""What the weights behind the attention's logits are multiplied by: the products then pass 65504."""


def scale_of_one(loop: Loop) -> None:
    """Switch the loss scale off in all but name, as training without one would be."""
    scale = loop.objectives[0].meter.loss_scale
    assert scale is not None, "float16 has one"
    scale.scale.fill_(1.0)


def overflowing_logits(at_step: int) -> Fault:
    """R01: without a loss scale, and queries and keys of the cross attention 64 times too large."""

    def change(loop: Loop) -> None:
        scale_of_one(loop)
        for name, parameter in loop.model.named_parameters():
            if name.endswith(("attention.query.weight", "attention.key.weight")):
                parameter.mul_(_OVERFLOWS)

    return between_steps(at_step, change)


def without_loss_scale(at_step: int) -> Fault:
    """R02: from now on nothing lifts the small gradients into float16's range, and no number says so."""
    return Fault(at_step, Phase.FORWARD, scale_of_one, times=1_000_000)


@dataclass
class OverflowingModule:
    """F28: for ``batches`` batches one layer's gradient is beyond float16, whatever the loss scale.

    Sixteen of them bring the scale to its floor; two more are refused there.
    """

    at_step: int
    batches: int = 18
    struck_at: int | None = field(default=None, init=False)

    def inject(self, ground: Ground) -> None:
        """Train with the layer's gradients overflowing from ``at_step`` on; a replay overflows as well."""
        ground.train([Fault(self.at_step, Phase.FETCH, self._strike)])

    def _strike(self, loop: Loop) -> None:
        self.struck_at = loop.number
        weight = largest_parameter(loop)
        layer = next(m for m in loop.model.modules() if any(weight is p for p in m.parameters(recurse=False)))
        until = loop.state.iteration + self.batches

        def watch(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if output.requires_grad and loop.state.iteration <= until:
                output.register_hook(_beyond_float16)  # type: ignore[no-untyped-call]

        layer.register_forward_hook(watch)


def _beyond_float16(gradient: Tensor) -> Tensor:
    return torch.full_like(gradient, torch.inf) if gradient.dtype == torch.float16 else gradient
