"""Moments that an optimizer has not made yet, with the room that the saved ones need."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer


@dataclass(frozen=True, slots=True)
class Missing:
    """What an optimizer is to keep of a parameter; until ``give`` it knows nothing of it."""

    owner: str
    optimizer: Optimizer
    parameter: Tensor
    moments: Mapping[str, Any]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """By the names that they have in a checkpoint; their values are still to be copied."""
        for key, moment in self.moments.items():
            if isinstance(moment, Tensor):
                yield f"{self.owner}/{key}", moment

    def give(self) -> None:
        """From now on the optimizer has them."""
        self.optimizer.state[self.parameter] = dict(self.moments)


def missing_moments(
    model: nn.Module, optimizers: Mapping[str, Optimizer], saved: Mapping[str, Any]
) -> Iterator[Missing]:
    """Of each parameter that an optimizer holds and has no moments of yet, those that were saved.

    Args:
        saved: tensors and numbers by ``objective/parameter/key``. What Adam or SGD would never keep of that
            parameter is left out, and so stays unexpected.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    by_owner: dict[str, dict[str, Any]] = {}
    for name, moment in saved.items():
        owner, _, key = name.rpartition("/")
        by_owner.setdefault(owner, {})[key] = moment
    for objective, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                owner = f"{objective}/{names.get(parameter)}"
                moments = by_owner.get(owner)
                if moments and not optimizer.state.get(parameter) and _fit(optimizer, group, moments):
                    room = {key: _room(key, moment, parameter, group) for key, moment in moments.items()}
                    yield Missing(owner, optimizer, parameter, room)


def _fit(optimizer: Optimizer, group: Mapping[str, Any], moments: Mapping[str, Any]) -> bool:
    """Whether it could have made these; of an optimizer that is neither Adam nor SGD nobody knows."""
    if isinstance(optimizer, Adam | AdamW):
        highest = {"max_exp_avg_sq"} if group["amsgrad"] else set()
        return moments.keys() == {"step", "exp_avg", "exp_avg_sq"} | highest
    if isinstance(optimizer, SGD):
        return bool(group["momentum"]) and moments.keys() == {"momentum_buffer"}
    return True


def _room(key: str, moment: Any, parameter: Tensor, group: Mapping[str, Any]) -> Any:
    """Sharded and laid out as the parameter where it has its shape; a count is on the host unless fused."""
    if not isinstance(moment, Tensor):
        return moment
    if key == "step" and not (group.get("fused") or group.get("capturable")):
        return torch.empty_like(moment, device="cpu")
    if moment.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=moment.dtype, requires_grad=False)
    return torch.empty_like(moment, device=parameter.device)
