"""A learning rate that recovery has lowered, lent to an optimizer for its step only."""

import torch
from torch import Tensor
from torch.optim import Optimizer


class LentRates:
    """Multiplies the rates of all groups by ``eased`` for one step, so that no scheduler ever sees it."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.eased = torch.ones((), dtype=torch.float64)
        self._own: list[float | Tensor] = []

    def lend(self) -> None:
        """Right before the step. What is lent still, since none was made, is taken back first."""
        self.take_back()
        self._own = [group["lr"] for group in self._optimizer.param_groups]
        self._set([rate * float(self.eased) for rate in self._own])

    def take_back(self) -> float | Tensor:
        """Right after it; answers the rate with which the first group was stepped."""
        lent: float | Tensor = self._optimizer.param_groups[0]["lr"]
        self._set(self._own)
        self._own = []
        return lent

    def _set(self, rates: list[float | Tensor]) -> None:
        """A group that was added since was lent nothing; it comes after the others."""
        for group, rate in zip(self._optimizer.param_groups, rates, strict=False):
            group["lr"] = rate
