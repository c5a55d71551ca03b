"""An objective: one loss with its optimizer, its learning rate on the device, and its meter."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import AdamW

from trainer.guards.base import StepLosses
from trainer.guards.vitals import Meter
from trainer.held import HeldSettings
from trainer.section import Section

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """AdamW and its schedule. Defaults: RadioDiff's latent stage (SPEC §8)."""

    lr: float = Field(5e-5, gt=0, description="Learning rate at the first step.")
    weight_decay: float = Field(1e-4, ge=0, description="Decoupled, as a share of the rate.")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="Forgetting of the two moments.")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    schedule: Literal["polynomial", "constant"] = Field("polynomial", description="How the rate falls.")
    power: float = Field(0.96, gt=0, description="Exponent of the polynomial schedule.")
    floor: float = Field(5e-6, ge=0, le=1, description="Least factor on lr: a factor, not a rate.")
    max_norm: float = Field(1.0, gt=0, description="Gradients above this global norm are clipped to it.")


class Schedule:
    """The learning rate as a function of the applied updates, computed where they are counted: on the device.

    A refused step does not advance it, and the host need not know. factor(i) = max((1 - i/N)^power, floor).
    ``eased`` is a second factor, which recovery turns down for a while.
    """

    def __init__(self, config: OptimizerConfig, total_steps: int, device: torch.device) -> None:
        self.config, self.total_steps = config, total_steps
        self.lr = torch.tensor(config.lr, dtype=torch.float32, device=device)
        self.eased = torch.ones((), dtype=torch.float64, device=device)

    def set_for(self, applied: Tensor) -> Tensor:
        """Set ``lr`` for the update after ``applied`` ones (integer scalar on the device), and answer it."""
        rate = self.config.lr * self.eased
        if self.config.schedule == "polynomial":
            remaining = (1 - applied.double() / self.total_steps).clamp_min(0)
            rate = rate * remaining.pow(self.config.power).clamp_min(self.config.floor)
        self.lr.copy_(rate)
        return self.lr


@dataclass(frozen=True)
class Objective:
    """What one loss of a model is optimized by."""

    name: str
    optimizer: AdamW
    schedule: Schedule
    meter: Meter
    settings: HeldSettings = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", HeldSettings(self.optimizer))

    def backward(self, losses: StepLosses, share: float = 1.0) -> None:
        """Add the gradients of ``share`` of the loss, multiplied by the loss scale if there is one.

        Both seed the backward pass, so that the loss itself can't overflow.
        """
        scale, total = self.meter.loss_scale, losses.total
        if scale is None and share == 1.0:
            torch.autograd.backward(total)
            return
        if total.element_size() < 4:  # a scale of 65536 does not fit into float16
            total = total.float()
        seed = torch.full_like(total, share)
        torch.autograd.backward(total, seed if scale is None else seed * scale.scale)

    def update(self) -> list[str]:
        """Apply the measured gradients, unless the meter refused them: the device decides.

        Answers which settings of the optimizer somebody had changed, its rate for instance: they were put
        back first.
        """
        lr = self.schedule.set_for(self.meter.applied)
        changed = self.settings.put_back()
        self.meter.step()
        self.meter.settle(lr)
        return changed


def fused_adamw(parameters: Sequence[nn.Parameter], config: OptimizerConfig, lr: Tensor) -> AdamW:
    """AdamW whose kernel can refuse a step, with its moments there from the start.

    torch makes them at the first step; made now, a checkpoint of step 0 is complete and a restore never has
    to guess which moments should exist. A refused step with zero gradients makes them, and nothing else.
    """
    optimizer = AdamW(
        parameters, lr=lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
    )
    optimizer.found_inf = torch.ones((), device=lr.device)  # type: ignore[attr-defined]
    optimizer.grad_scale = torch.ones((), device=lr.device)  # type: ignore[attr-defined]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer
