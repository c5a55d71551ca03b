"""What can't be true of a healthy run, whatever it learns: exact bounds, so that not one alarm is false."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from shared.events import Finding, Severity
from trainer.guards.adam import AdamParameter, Size, adam_parameters, sizes_of
from trainer.guards.base import StepView, Watched, every, finding
from trainer.guards.refusal import running_statistics
from trainer.section import Section

_NAMED = 3
_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class InvariantsConfig(Section):
    scan_every: int = Field(100, ge=1, description="Check the state this often, in steps.")


@dataclass(frozen=True, slots=True)
class _Look:
    """The state at one moment, as far as invariants speak of it."""

    constants: dict[str, int]
    sizes: dict[str, Size]


class _Problem(NamedTuple):
    """What can't be true, of which tensor, and by which numbers it is seen."""

    what: str
    name: str
    details: str = ""


class Invariants:
    """Constants that changed, weights that moved further than Adam can, moments that no gradients made.

    *Constants*: parameters that no optimizer holds, and buffers that ``is_constant`` names (by default all
    but running statistics). Their fingerprints are saved with the run; a rollback doesn't renew them, since
    nothing may change them.

    *Adam's bound*: by Cauchy-Schwarz no element moves by more than ``reach * lr`` in a step, 7.27 lr for
    betas (0.9, 0.999), plus decoupled weight decay. So a tensor's norm moves by at most that times
    sqrt(numel), summed over the steps since the last look. For the same reason ``norm(exp_avg)**2 <= c**2 *
    sum(exp_avg_sq)``; no second moment is negative, and none falls faster than by beta2 a step.

    *The average's hull*: it only ever moves towards the weights, so it can't get further away from them than
    they have moved since the last look.

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
        self._scanned = -1
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
        """Lengthen the path of the objective's optimizers by one applied step: count, and sum of rates."""
        vitals = view.vitals
        if vitals.refused:
            return
        for name, optimizer in view.watched.optimizers_of(vitals.objective).items():
            steps, rates = self._path.get(name, (0, 0.0))
            highest = max(vitals.lr, _highest_rate(optimizer, on_host=True))
            self._path[name] = (steps + 1, rates + highest)

    def _look(self, watched: Watched) -> _Look:
        constants = dict(self._constant_tensors(watched))
        adams = list(adam_parameters(watched))
        hashes, sizes = _read([fingerprint(t) for t in constants.values()], sizes_of(adams))
        return _Look(
            constants=dict(zip(constants, hashes, strict=True)),
            sizes={adam.name: Size(*row) for adam, row in zip(adams, sizes, strict=True)},
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

    def _changed(self, now: _Look) -> Iterator[_Problem]:
        for name, bits in now.constants.items():
            if self._constants.get(name, bits) != bits:
                yield _Problem("a constant has changed", name)

    def _impossible(self, view: StepView, now: _Look) -> Iterator[_Problem]:
        for adam in adam_parameters(view.watched):
            size = now.sizes[adam.name]
            if not adam.may_have_moments(size):
                yield _Problem("moments that are not a mean of any gradients", adam.name)
            if self._then is None or adam.name not in self._then.sizes:
                continue
            steps, rates = self._path_of(adam)
            before = self._then.sizes[adam.name]
            least = adam.least_second(before.second, steps)
            if size.second < least:
                told = (
                    f"in sum {size.second:.3g}, and {least:.3g} is the least that {steps} updates leave of it"
                )
                yield _Problem("a second moment was forgotten", adam.name, told)
            bound = adam.bound(before.weight, steps, rates)
            if not size.to_average <= (before.to_average + bound) * (1 + 1e-3):
                far = f"{size.to_average:.4g} after {before.to_average:.4g}"
                told = f"{far}, and {bound:.3g} is the most to add"
                yield _Problem(
                    "averages are further from their weights than updates explain", adam.name, told
                )
            if not abs(size.weight - before.weight) <= bound:
                moved = f"its norm from {before.weight:.6g} to {size.weight:.6g}"
                told = f"{moved}, and {bound:.3g} is the most"
                yield _Problem("weights moved further than Adam can", adam.name, told)

    def _path_of(self, adam: "AdamParameter") -> tuple[int, float]:
        """Updates since the last look and the sum of their rates, those not reported yet included."""
        steps, rates = self._path.get(adam.objective, (0, 0.0))
        return steps + self._late, rates + self._late * _highest_rate(adam.optimizer)

    def _tell(self, view: StepView, problems: list[_Problem]) -> Finding:
        message, first = _in_words(problems), problems[0].name
        return finding(self.name, view, Severity.CRITICAL, message, problems=len(problems), first=first)


def _in_words(problems: list[_Problem]) -> str:
    """What is wrong, each thing once, before which tensors."""
    which: dict[str, list[str]] = {}
    for what, name, details in problems:
        which.setdefault(what, []).append(f"{name}, {details}" if details else name)
    named = "; ".join(f"{what}: {'; '.join(some[:_NAMED])}" for what, some in which.items())
    left = sum(max(len(some) - _NAMED, 0) for some in which.values())
    return named + (f"; and {left} more" if left else "")


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


def _read(hashes: list[Tensor], sizes: Tensor) -> tuple[list[int], list[list[float]]]:
    """Both to the host in one read: the floats travel as their bits."""
    bits = torch.cat([one.reshape(1) for one in hashes] + [sizes.reshape(-1).view(torch.int64)])
    numbers = bits.cpu().numpy()
    count = len(hashes)
    return numbers[:count].tolist(), numbers[count:].view(np.float64).reshape(-1, 5).tolist()


def _highest_rate(optimizer: Optimizer, on_host: bool = False) -> float:
    """The highest learning rate of the groups; with ``on_host`` those that are tensors are left out."""
    rates = (group["lr"] for group in optimizer.param_groups)
    return max((float(rate) for rate in rates if not (on_host and isinstance(rate, Tensor))), default=0.0)
