"""What can't be true of a healthy run, whatever it learns: exact bounds, so that not one alarm is false."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from shared.events import Finding, Severity
from trainer.guards.base import StepView, Watched, every, finding, norms, own_part, parameter_names
from trainer.guards.refusal import running_statistics
from trainer.section import Section

_NAMED = 3
_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class InvariantsConfig(Section):
    scan_every: int = Field(100, ge=1, description="Check the state this often, in steps.")


@dataclass(frozen=True, slots=True)
class _Size:
    """Norms of one parameter and of its moments; ``second`` is the sum of the second moments."""

    weight: float
    first: float = 0.0
    second: float = 0.0
    least_second: float = 0.0


@dataclass(frozen=True, slots=True)
class _Look:
    """The state at one moment, as far as invariants speak of it."""

    constants: dict[str, int]
    sizes: dict[str, _Size]


class Invariants:
    """Constants that changed, weights that moved further than Adam can, moments that no gradients made.

    *Constants*: parameters that no optimizer holds, and buffers that ``is_constant`` names (by default all
    but running statistics). Their fingerprints are saved with the run; a rollback doesn't renew them, since
    nothing may change them.

    *Adam's bound*: by Cauchy-Schwarz no element moves by more than ``reach * lr`` in a step, 7.27 lr for
    betas (0.9, 0.999), plus decoupled weight decay. So a tensor's norm moves by at most that times
    sqrt(numel), summed over the steps since the last look. For the same reason ``norm(exp_avg)**2 <= c**2 *
    sum(exp_avg_sq)``; no second moment is negative, and none falls faster than by beta2 a step.

    One device read for each scan (one more for each learning rate that lives on a GPU). Optimizers other than
    Adam and AdamW have no such bounds.

    Args:
        late: updates that may have been applied after those that the viewed vitals know of.
    """

    name = "invariants"
    scans = True

    def __init__(
        self,
        config: InvariantsConfig | None = None,
        *,
        is_constant: Callable[[str], bool] | None = None,
        late: int = 2,
    ) -> None:
        self._due = every((config or InvariantsConfig()).scan_every)
        self._is_constant, self._late = is_constant, late
        self._constants: dict[str, int] = {}
        self._then: _Look | None = None
        self._path: dict[str, tuple[int, float]] = {}
        self._scanned = -1

    def inspect(self, view: StepView) -> Finding | None:
        vitals = view.vitals
        if not (math.isfinite(vitals.lr) and vitals.lr >= 0):
            message = (
                f"{vitals.objective}: the learning rate is {vitals.lr}; it must be finite and not negative"
            )
            return finding(self.name, view, Severity.CRITICAL, message, lr=vitals.lr)
        self._follow(view)
        if not view.alarm and (not self._due(vitals.iteration) or vitals.iteration == self._scanned):
            return None
        self._scanned = vitals.iteration
        now = self._look(view.watched)
        problems = [*self._changed(now), *self._impossible(view, now)]
        if problems:
            return self._tell(view, problems)
        self._refer_to(now)
        return None

    def rebase(self, watched: Watched) -> None:
        """The state was set from outside (start, resume, rollback): measure motion from here. One read."""
        self._refer_to(self._look(watched))

    def state_dict(self) -> dict[str, Any]:
        return {"constants": self._constants}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._constants = dict(state["constants"])
        self._then = None

    def _refer_to(self, look: _Look) -> None:
        self._then = look
        self._constants = look.constants | self._constants
        self._path.clear()

    def _follow(self, view: StepView) -> None:
        """Lengthen the path of the objective by one applied step: count, and sum of the learning rates."""
        vitals = view.vitals
        if vitals.refused:
            return
        steps, rates = self._path.get(vitals.objective, (0, 0.0))
        highest = max(vitals.lr, _highest_rate(view.watched.optimizers[vitals.objective], on_host=True))
        self._path[vitals.objective] = (steps + 1, rates + highest)

    def _look(self, watched: Watched) -> _Look:
        constants = dict(self._constant_tensors(watched))
        adams = list(_adam_parameters(watched))
        hashes, sizes = _read([fingerprint(t) for t in constants.values()], _sizes(adams))
        return _Look(
            constants=dict(zip(constants, hashes, strict=True)),
            sizes={adam.name: _Size(*row) for adam, row in zip(adams, sizes, strict=True)},
        )

    def _constant_tensors(self, watched: Watched) -> Iterator[tuple[str, Tensor]]:
        held = {
            p
            for optimizer in watched.optimizers.values()
            for g in optimizer.param_groups
            for p in g["params"]
        }
        yield from ((name, p) for name, p in watched.model.named_parameters() if p not in held)
        written = running_statistics(watched.model)
        is_constant = self._is_constant or (lambda name: name not in written)
        yield from ((name, b) for name, b in watched.model.named_buffers() if is_constant(name))

    def _changed(self, now: _Look) -> Iterator[str]:
        for name, bits in now.constants.items():
            if self._constants.get(name, bits) != bits:
                yield f"{name} is a constant and has changed"

    def _impossible(self, view: StepView, now: _Look) -> Iterator[str]:
        for adam in _adam_parameters(view.watched):
            size = now.sizes[adam.name]
            if not adam.may_have_moments(size):
                yield f"the moments of {adam.name} are not a mean of any gradients"
            if self._then is None or adam.name not in self._then.sizes:
                continue
            steps, rates = self._path_of(adam)
            least = adam.least_second(self._then.sizes[adam.name].second, steps)
            if size.second < least:
                yield (
                    f"{adam.name} has forgotten its second moment: in sum {size.second:.3g}, and {least:.3g} "
                    f"is the least that {steps} updates leave of it"
                )
            then = self._then.sizes[adam.name].weight
            bound = adam.bound(then, steps, rates)
            if not abs(size.weight - then) <= bound:
                moved = f"its norm went from {then:.6g} to {size.weight:.6g}"
                yield f"{adam.name} moved further than Adam can: {moved}, and {bound:.3g} is the most"

    def _path_of(self, adam: "_AdamParameter") -> tuple[int, float]:
        """Updates since the last look and the sum of their rates, those not reported yet included."""
        steps, rates = self._path.get(adam.objective, (0, 0.0))
        return steps + self._late, rates + self._late * _highest_rate(adam.optimizer)

    def _tell(self, view: StepView, problems: list[str]) -> Finding:
        more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        message = f"this can't be: {'; '.join(problems[:_NAMED])}{more}"
        return finding(self.name, view, Severity.CRITICAL, message, problems=len(problems))


@dataclass(frozen=True, slots=True)
class _AdamParameter:
    """A parameter that Adam or AdamW moves, and how far it may."""

    name: str
    objective: str
    parameter: Tensor
    optimizer: Optimizer
    group: Mapping[str, Any]

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

    def may_have_moments(self, size: _Size) -> bool:
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


def fingerprint(tensor: Tensor) -> Tensor:
    """A sum over the bits of all elements, int64, still on its device: exact in any order of summing.

    Each element goes through x (2x + 1), a permutation of the 64-bit integers, so that a change of one
    element is always seen, and a change of many (the sign of a whole tensor, say) all but surely. A
    permutation is not.
    """
    values = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    bits = values.view(_INTEGER_OF_SIZE[values.element_size()]).long()
    mixed = bits ^ (bits >> 32 & 0xFFFFFFFF)  # or the sign of a float64 would move the sum by 2**63 only
    return (mixed * (2 * mixed + 1)).sum()


def _adam_parameters(watched: Watched) -> Iterator[_AdamParameter]:
    names = parameter_names(watched.model)
    for objective, optimizer in watched.optimizers.items():
        if not isinstance(optimizer, Adam | AdamW):
            continue
        for index, group in enumerate(optimizer.param_groups):
            for place, parameter in enumerate(group["params"]):
                name = names.get(parameter, f"{objective} parameter {index}.{place}")
                yield _AdamParameter(name, objective, parameter, optimizer, group)


def _sizes(adams: list[_AdamParameter]) -> Tensor:
    """Weight, first, second and least second of each parameter, (N, 4), on the device."""
    none = adams[0].parameter.new_zeros(1) if adams else torch.zeros(1)
    firsts = [adam.state.get("exp_avg", none) for adam in adams]
    seconds = [own_part(adam.state.get("exp_avg_sq", none)) for adam in adams]
    if not adams:
        return torch.zeros(0, 4)
    columns = (
        norms([adam.parameter.detach() for adam in adams]),
        norms(firsts),
        torch.stack([second.sum(dtype=torch.float32) for second in seconds]),
        torch.stack([second.amin() if second.numel() else second.new_zeros(()) for second in seconds]),
    )
    return torch.stack([column.double() for column in columns], dim=1)


def _read(hashes: list[Tensor], sizes: Tensor) -> tuple[list[int], list[list[float]]]:
    """Both to the host in one read: the floats travel as their bits."""
    bits = torch.cat([one.reshape(1) for one in hashes] + [sizes.reshape(-1).view(torch.int64)])
    numbers = bits.cpu().numpy()
    count = len(hashes)
    return numbers[:count].tolist(), numbers[count:].view(np.float64).reshape(-1, 4).tolist()


def _highest_rate(optimizer: Optimizer, on_host: bool = False) -> float:
    """The highest learning rate of the groups; with ``on_host`` those that are tensors are left out."""
    rates = (group["lr"] for group in optimizer.param_groups)
    return max((float(rate) for rate in rates if not (on_host and isinstance(rate, Tensor))), default=0.0)
