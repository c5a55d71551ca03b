"""How far Adam can move, and what its moments can be: bounds by Cauchy-Schwarz, true of any gradients."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from trainer.guards.base import Watched, norms, own_part, parameter_names


@dataclass(frozen=True, slots=True)
class Size:
    """Norms of one parameter and of its moments; ``second`` is the sum of the second moments.

    ``to_average`` is the norm of its difference from the average, 0 where there is none.
    """

    weight: float
    first: float = 0.0
    second: float = 0.0
    least_second: float = 0.0
    to_average: float = 0.0


@dataclass(frozen=True, slots=True)
class AdamParameter:
    """A parameter that Adam or AdamW moves, and how far it may."""

    name: str
    objective: str
    parameter: Tensor
    optimizer: Optimizer
    group: Mapping[str, Any]
    average: Tensor | None

    @property
    def state(self) -> Mapping[str, Tensor]:
        state: Mapping[str, Tensor] = self.optimizer.state.get(self.parameter, {})
        return state

    def bound(self, then: float, steps: int, rates: float) -> float:
        """The most that the norm, ``then`` at first, can change in ``steps`` updates of ``rates`` in all."""
        beta1, beta2 = self.group["betas"]
        move = reach(beta1, beta2) * rates * math.sqrt(self.parameter.numel())
        move += self._decay() * rates * (then + move)
        ulps = torch.finfo(self.parameter.dtype).eps / 2 * steps * (then + move)
        return move + min(move, ulps) + 1e-5 * then  # the weights' rounding, and that of the norm itself

    def least_second(self, then: float, steps: int) -> float:
        """What ``steps`` updates leave of a sum of second moments at least, whatever the gradients were."""
        second = self.state.get("exp_avg_sq")
        if second is None or second.element_size() < 4 or then < 1e-30:  # rounding would have its say
            return 0.0
        return then * float(self.group["betas"][1]) ** steps * 0.999

    def may_have_moments(self, size: Size) -> bool:
        """Whether any gradients could have left these moments. Says nothing of moments below float32."""
        if not self.state or self.state["exp_avg"].element_size() < 4:
            return True
        beta1, beta2 = self.group["betas"]
        tiny = 1e-15 * math.sqrt(self.parameter.numel())  # where squares underflow
        most = cauchy(beta1, beta2) * math.sqrt(max(size.second, 0.0)) * 1.001 + tiny
        return size.least_second >= 0 and size.first <= most

    def _decay(self) -> float:
        decoupled = self.group.get("decoupled_weight_decay", isinstance(self.optimizer, AdamW))
        return float(self.group["weight_decay"]) if decoupled else 0.0


def cauchy(beta1: float, beta2: float) -> float:
    """The largest |exp_avg| / sqrt(exp_avg_sq) any gradients give: 7.27 for (0.9, 0.999), or infinite."""
    ratio = beta1**2 / beta2
    return (1 - beta1) / math.sqrt((1 - beta2) * (1 - ratio)) if ratio < 1 else math.inf


def reach(beta1: float, beta2: float) -> float:
    """The largest move of one element in one step, in units of the rate, bias correction included."""
    return cauchy(beta1, beta2) * max(1.0, math.sqrt(1 - beta2) / (1 - beta1))


def adam_parameters(watched: Watched) -> Iterator[AdamParameter]:
    names = parameter_names(watched.model)
    for objective, optimizer in watched.optimizers.items():
        if not isinstance(optimizer, Adam | AdamW):
            continue
        for index, group in enumerate(optimizer.param_groups):
            for place, parameter in enumerate(group["params"]):
                name = names.get(parameter, f"{objective} parameter {index}.{place}")
                average = (watched.ema or {}).get(name)
                yield AdamParameter(name, objective, parameter, optimizer, group, average)


def sizes_of(adams: list[AdamParameter]) -> Tensor:
    """What ``Size`` holds of each parameter, (N, 5), on the device."""
    none = adams[0].parameter.new_zeros(1) if adams else torch.zeros(1)
    firsts = [adam.state.get("exp_avg", none) for adam in adams]
    seconds = [own_part(adam.state.get("exp_avg_sq", none)) for adam in adams]
    if not adams:
        return torch.zeros(0, 5)
    columns = (
        norms([adam.parameter.detach() for adam in adams]),
        norms(firsts),
        torch.stack([second.sum(dtype=torch.float32) for second in seconds]),
        torch.stack([second.amin() if second.numel() else second.new_zeros(()) for second in seconds]),
        torch.stack([_to_average(adam) for adam in adams]),
    )
    return torch.stack([column.double() for column in columns], dim=1)


def _to_average(adam: AdamParameter) -> Tensor:
    """One tensor after the other: all differences at once would take the memory of another model."""
    own = own_part(adam.parameter.detach())
    if adam.average is None:
        return own.new_zeros((), dtype=torch.float32)
    distance: Tensor = torch.linalg.vector_norm(own - own_part(adam.average), dtype=torch.float32)
    return distance
