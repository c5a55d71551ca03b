"""The gradient's norm module by module: which part of a model learns, and in which one trouble begins."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.guards.base import norms, own_part, parameter_names

EVERY = 20
"""Steps between measurements: a second look at all gradients, a twentieth of it in the mean."""

MOST = 24
"""Modules told apart: rows that a person can read, and series that a monitor can keep."""


class ModuleNorms:
    """Norms of the gradient of one objective's parameters, before clipping, for a few modules.

    Args:
        model: what names the parameters. parameters: those of the objective, at least one.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        known = parameter_names(model)
        modules = modules_of([known[one] for one in parameters])
        groups: dict[str, list[nn.Parameter]] = {}
        for one in parameters:
            groups.setdefault(modules[known[one]], []).append(one)
        self.names = tuple(groups)
        self._groups = list(groups.values())

    def measure(self) -> Tensor:
        """One norm for each of ``names``, (M,), still on the device; 0 for a module without a gradient."""
        grads = [[own_part(p.grad) for p in group if p.grad is not None] for group in self._groups]
        each = norms([grad for group in grads for grad in group])
        return norms(torch.split(each, [len(group) for group in grads]))


def modules_of(names: Sequence[str], most: int = MOST) -> dict[str, str]:
    """For each parameter, by its dotted name, the module that it is counted to; ``most`` modules at most.

    The module with most parameters is taken apart first, and again, as long as its parts still fit in. A
    layer, which holds parameters and no modules, stays whole.
    """
    groups = _parts("", names)
    while True:
        for name in sorted(groups, key=lambda name: -len(groups[name])):
            parts = _parts(f"{name}.", groups[name])
            fits = len(groups) - 1 + len(parts) <= most
            if fits and any(inside != [part] for part, inside in parts.items()):
                groups = {**{key: value for key, value in groups.items() if key != name}, **parts}
                break
        else:
            return {one: name for name, inside in groups.items() for one in inside}


def _parts(prefix: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Parameters below ``prefix`` by the next part of their names; a parameter itself has no parts."""
    parts: dict[str, list[str]] = {}
    for name in names:
        if name.startswith(prefix):
            parts.setdefault(prefix + name[len(prefix) :].split(".")[0], []).append(name)
    return parts
