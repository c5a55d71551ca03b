"""How hard an update strains the weights: how far it moves them, and how far gradients outgrow their moments.

Both rise before a loss does. Two numbers of every few steps, on the device:

    update_ratio   the largest |dw| / |w| of the matrices
    moment_lag     the largest |g| / sqrt(sum v) of them: g as the update takes it, v the second moments
                   before it, unbiased; about 1 where gradients are as they have been

A share of each matrix speaks for it, of 64 matrices at most, so the cost hardly grows with the model: about
1 ms of a CPU for each look, and launches of small kernels on a GPU.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.guards.base import norms, own_part

Add = Callable[[Tensor], None]
"""Makes of a tensor the sum of all ranks' ones, in place: for weights of which each rank has a share."""

_MATRICES, _ELEMENTS = 64, 1024


@dataclass(frozen=True, slots=True)
class _Group:
    """A parameter group, and the optimizer whose it is."""

    optimizer: Optimizer
    options: Mapping[str, Any]


class Strain:
    """Looks at the updates of ``optimizers``, once in ``every`` steps; costs a division in the others.

    Reads nothing from the device. What can't be measured is NaN: a matrix that is 0 throughout, or second
    moments that the optimizer doesn't keep as Adam does, with a step count and beta2 beside them. With
    sharded weights each rank takes part in each look.

    Raises:
        ValueError: ``every`` below 1.
    """

    def __init__(self, optimizers: Sequence[Optimizer], every: int = 4, add: Add | None = None) -> None:
        if every < 1:
            raise ValueError(f"a look at the update every {every} steps never comes; give 1 or more")
        self._optimizers, self._every, self._add = list(optimizers), every, add
        self._chosen: list[Tensor] = []
        self._before: list[Tensor] | None = None
        self._lag = self._nothing = torch.empty(0)

    def look(self, iteration: int, divisor: Tensor) -> None:
        """After backward: keep what the update will move; ``divisor`` is what it divides gradients by."""
        self._before = None
        if iteration % self._every:
            return
        chosen = self._choose()
        if not chosen:
            return
        self._chosen = [parameter for _, parameter in chosen]
        self._lag = self._moment_lag(chosen, divisor)
        self._before = list(
            torch._foreach_mul(_samples(self._chosen), 1.0)
        )  # one kernel; clone() is one for each

    def measured(self, like: Tensor) -> Tensor:
        """After the update: update ratio and moment lag, (2,) on the device; NaN where nobody looked."""
        if self._before is None:
            if not len(self._nothing):
                self._nothing = like.new_full((2,), torch.nan)
            return self._nothing
        before, self._before = self._before, None
        moved = self._sum_of_squares(torch._foreach_sub(_samples(self._chosen), before))
        return torch.stack((_largest(moved, self._sum_of_squares(before)), self._lag))

    def _choose(self) -> list[tuple[_Group, Tensor]]:
        """The matrices that the next update moves, with their groups; evenly thinned out in their order."""
        matrices = [
            (_Group(optimizer, group), parameter)
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.ndim >= 2 and parameter.grad is not None
        ]
        return matrices[:: max(1, -(-len(matrices) // _MATRICES))]

    def _moment_lag(self, chosen: Sequence[tuple[_Group, Tensor]], divisor: Tensor) -> Tensor:
        held = [(group, p) for group, p in chosen if _has_second_moments(group, p)]
        if not held:
            return divisor.new_full((), torch.nan)
        states = [group.optimizer.state[parameter] for group, parameter in held]
        seconds = torch.stack([one.sum() for one in _samples([state["exp_avg_sq"] for state in states])])
        count = states[0]["step"]  # moments that began together share it; some optimizers count on the host
        bias = torch.as_tensor(1 - held[0][0].options["betas"][1] ** count)
        squares = self._sum_of_squares(_samples([p.grad for _, p in held if p.grad is not None]))
        lag: Tensor = _largest(squares, self._whole(seconds)) * bias.sqrt() / divisor
        return lag

    def _sum_of_squares(self, tensors: Sequence[Tensor]) -> Tensor:
        return self._whole(norms(tensors).square())

    def _whole(self, sums: Tensor) -> Tensor:
        if self._add is not None:
            self._add(sums)
        return sums


def _has_second_moments(group: _Group, parameter: Tensor) -> bool:
    """Whether its optimizer keeps them as Adam does; another may use the names for something else."""
    state = group.optimizer.state.get(parameter, {})
    second, betas = state.get("exp_avg_sq"), group.options.get("betas", ())
    is_whole = isinstance(second, Tensor) and second.shape == parameter.shape
    return is_whole and "step" in state and len(betas) > 1


def _samples(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The first elements in memory of each: parameter, gradient and moment have the same layout."""
    own = [own_part(tensor.detach()) for tensor in tensors]
    return [one.as_strided((min(one.numel(), _ELEMENTS),), (1,)) for one in own]


def _largest(above: Tensor, below: Tensor) -> Tensor:
    """Largest root of the ratios, those left out whose lower part is 0. NaN if one is."""
    return torch.where(below > 0, above / below, 0.0).amax().sqrt()
