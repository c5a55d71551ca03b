"""What a step must find as it was left: put back before it is used where somebody changed it, and told.

Nothing of this is in a saved state: a setting of the optimizer and the mode of a module are made with them.
So no rollback could bring them back, and none is needed: the right value is known. Costs the host a
comparison a step, and the device nothing.
"""

import math
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

_NAMED = 3


class HeldSettings:
    """The settings of an optimizer's groups: rate, betas, decay and the rest, all but the parameters.

    A rate that is a tensor is held by identity: whoever owns it may write into it.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._held = [_settings(group) for group in optimizer.param_groups]

    def put_back(self) -> list[str]:
        """What was found changed, in words; everything is as it was afterwards."""
        changed = []
        for place, (group, held) in enumerate(zip(self._optimizer.param_groups, self._held, strict=True)):
            for key, value in held.items():
                found = group.get(key)
                if found is value or (not isinstance(value, Tensor) and _equal(found, value)):
                    continue
                group[key] = value
                changed.append(f"{key} of group {place} was {_in_words(found)}")
        return changed


class HeldModes:
    """Whether each module trains or evaluates, and whether each parameter wants a gradient."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())
        self._parameters = dict(model.named_parameters())
        self._is_training = self._modes()
        self._wants_gradient = self._wishes()

    def put_back(self) -> list[str]:
        """What was found changed, in words; everything is as it was afterwards."""
        if self._modes() == self._is_training and self._wishes() == self._wants_gradient:
            return []
        return [*self._put_modes_back(), *self._put_wishes_back()]

    def _modes(self) -> list[bool]:
        return list(map(attrgetter("training"), self._modules.values()))

    def _wishes(self) -> list[bool]:
        return list(map(attrgetter("requires_grad"), self._parameters.values()))

    def _put_modes_back(self) -> Iterator[str]:
        for held, mode in ((True, "training"), (False, "evaluation")):
            changed = []
            for (name, module), was in zip(self._modules.items(), self._is_training, strict=True):
                if was == held != module.training:
                    module.training = held
                    changed.append(name or "the model")
            if changed:
                yield f"{_some(changed)} had left {mode} mode"

    def _put_wishes_back(self) -> Iterator[str]:
        changed = []
        for (name, parameter), held in zip(self._parameters.items(), self._wants_gradient, strict=True):
            if parameter.requires_grad != held:
                parameter.requires_grad_(held)
                changed.append(name)
        if changed:
            yield f"{_some(changed)} had changed whether a gradient is wanted"


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _equal(found: object, held: object) -> bool:
    if isinstance(found, Tensor):
        return False
    return found == held


def _in_words(found: object) -> str:
    """A number as such, whatever it lies in; reads it, since something is wrong already."""
    if isinstance(found, Tensor) and found.numel() == 1:
        found = float(found)
    return f"{found:g}" if isinstance(found, float) and not math.isnan(found) else str(found)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"
