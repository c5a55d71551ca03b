"""What optimizers keep of a model's parameters, and room for what was saved and they have not made yet."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from trainer.guards.base import parameter_names

Number = float | int | bool | str | None


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


@dataclass(frozen=True)
class Moments:
    """Of all optimizers of a model, by the names that they have in a checkpoint: objective/parameter/key."""

    model: nn.Module
    optimizers: Mapping[str, Optimizer]

    def tensors(self) -> dict[str, Tensor]:
        """The live ones on the device, or where the optimizer keeps its tensors."""
        return {name: state[key] for name, state, key in self._each() if isinstance(state[key], Tensor)}

    def on_host(self) -> dict[str, Number]:
        """Numbers and words. Raises ValueError: it keeps something else, which can't be saved."""
        told: dict[str, Number] = {}
        for name, state, key in self._each():
            if isinstance(state[key], Number):
                told[name] = state[key]
            elif not isinstance(state[key], Tensor):
                raise ValueError(
                    f"the optimizer keeps {name} as a {type(state[key]).__name__}, which can't be saved; "
                    "keep tensors, numbers or words there"
                )
        return told

    def set_on_host(self, saved: Mapping[str, Number]) -> None:
        """Those of them that were saved."""
        for name, state, key in self._each():
            if name in saved:
                state[key] = saved[name]

    def owners(self) -> set[str]:
        """Objective and name of each parameter that has any."""
        return owners_of(name for name, _, _ in self._each())

    def zero(self, module: str) -> None:
        """Those of this module's own parameters, as at the first step."""
        names = parameter_names(self.model)
        for optimizer in self.optimizers.values():
            for parameter, moments in optimizer.state.items():
                if names[parameter].rpartition(".")[0] == module:
                    for key, value in moments.items():
                        if key != "step" and isinstance(value, Tensor):
                            value.zero_()

    def forget(self, owners: Set[str]) -> None:
        """As before their first gradient; the optimizer makes them anew at the next."""
        names = parameter_names(self.model)
        for objective, optimizer in self.optimizers.items():
            for parameter in list(optimizer.state):
                if f"{objective}/{names[parameter]}" in owners:
                    del optimizer.state[parameter]

    def missing(self, saved: Mapping[str, Any]) -> Iterator[Missing]:
        """Of each parameter that an optimizer holds and has no moments of yet, those that were saved.

        What Adam or SGD would never keep of that parameter is left out, and so stays unexpected.
        """
        names = parameter_names(self.model)
        by_owner: dict[str, dict[str, Any]] = {}
        for name, moment in saved.items():
            owner, _, key = name.rpartition("/")
            by_owner.setdefault(owner, {})[key] = moment
        for objective, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    owner = f"{objective}/{names.get(parameter)}"
                    moments = by_owner.get(owner)
                    if moments and not optimizer.state.get(parameter) and _fit(optimizer, group, moments):
                        room = {key: _room(key, moment, parameter, group) for key, moment in moments.items()}
                        yield Missing(owner, optimizer, parameter, room)

    def _each(self) -> Iterator[tuple[str, dict[str, Any], str]]:
        """Name, the optimizer's state of that parameter, and the key in it."""
        names = parameter_names(self.model)
        for objective, optimizer in self.optimizers.items():
            for parameter, state in optimizer.state.items():
                for key in state:
                    yield f"{objective}/{names[parameter]}/{key}", state, key


def owners_of(names: Iterable[str]) -> set[str]:
    """Objective and parameter of moments with these names."""
    return {name.rpartition("/")[0] for name in names}


def count_by_objective(owners: Iterable[str]) -> dict[str, int]:
    """How many of them each objective has."""
    return dict(Counter(owner.partition("/")[0] for owner in owners))


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
