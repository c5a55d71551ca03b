"""The probe: a fixed batch's loss under fixed randomness, which tells whether a state is the one saved."""

import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from trainer.ema import Ema
from trainer.guards.base import StepLosses


@runtime_checkable
class Trainee(Protocol):
    """A module that the loop can train: one loss, or several that are optimized in turn."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the losses, in the order of their updates."""

    def training_step(self, batch: Mapping[str, Tensor], objective: str, step: int) -> StepLosses:
        """The losses of ``batch`` for one objective, with a graph to its parameters."""

    def parameters_of(self, objective: str) -> list[nn.Parameter]:
        """The parameters that this objective trains."""


class Probe:
    """Recomputes the loss of one batch with the same diffusion times and noise, in evaluation mode.

    It reads every weight and buffer that training reads, so a wrong scale factor, a lost buffer, a mixed-up
    average or another precision changes it. Costs two forward passes and leaves no trace: modes and random
    states are put back.
    """

    def __init__(self, model: nn.Module, ema: Ema, batch: Mapping[str, Tensor], seed: int = 0) -> None:
        self._model, self._ema, self._batch, self._seed = model, ema, batch, seed

    def measure(self, step: int) -> dict[str, float]:
        """Loss with the live weights and with their average: ``{"live": …, "ema": …}``."""
        return {"live": self._loss(step), "ema": self.of_average(step)}

    def of_average(self, step: int) -> float:
        """Loss with the average of the weights alone: one forward pass."""
        with self._ema.in_place_of(self._model):
            return self._loss(step)

    def difference(self, expected: Mapping[str, float], step: int, tolerance: float) -> str | None:
        """In words, how the state's losses differ from ``expected``; None if they agree."""
        for name, found in self.measure(step).items():
            if not math.isclose(found, expected[name], rel_tol=tolerance):
                return f"probe loss ({name} weights) is {found:.6g}, was {expected[name]:.6g} when saved"
        return None

    def _loss(self, step: int) -> float:
        model = self._model
        assert isinstance(model, Trainee)
        was_training = model.training
        devices = {tensor.device for tensor in self._batch.values() if tensor.is_cuda}
        with torch.no_grad(), torch.random.fork_rng(list(devices)):
            torch.manual_seed(self._seed)
            model.eval()
            try:
                losses = [model.training_step(self._batch, one, step) for one in model.objectives]
                return sum(float(one.total) for one in losses)
            finally:
                model.train(was_training)
