"""Measures one objective's step on the device, refuses a bad one there, and tells the host later.

    meter.protect()                         # before the forward pass
    losses = model(batch); losses.total.backward()
    refused = meter.measure(losses)         # sets found_inf and grad_scale
    meter.step()                            # optimizer.step(), which writes nothing if refused
    meter.settle(lr)                        # buffers back, counters on, numbers on their way
    for vitals in meter.arrived(): ...      # those of a step or two ago

No call here waits for the device, save ``arrived`` when the host is more than ``history`` steps ahead.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.guards.base import Reason, StepLosses, Vitals, norms, own_part
from trainer.guards.courier import Courier, Parcel
from trainer.guards.limits import Limits, ceilings_of
from trainer.guards.loss_scale import LossScale, share_of_zeros
from trainer.guards.modules import EVERY, ModuleNorms
from trainer.guards.refusal import Shadow, check_refusable, prime
from trainer.guards.strain import Strain


@dataclass(frozen=True, slots=True)
class Whole:
    """A step's losses, the terms of its ceilings, and the norm of its gradient: all of the whole batch."""

    losses: StepLosses
    terms: Tensor
    norm: Tensor


Reduce = Callable[[StepLosses, Tensor, Sequence[Tensor]], Whole]
"""Makes of the losses, terms and gradients that this process has those of the whole batch."""


def of_one_process(losses: StepLosses, terms: Tensor, grads: Sequence[Tensor]) -> Whole:
    """A batch of which this process has all."""
    return Whole(losses, terms, torch.linalg.vector_norm(norms(grads)))


class Meter:
    """Measures and, where needed, refuses the steps of one objective.

    Args:
        objective: its name in vitals and findings. optimizer: fused AdamW, Adam or SGD, or several that step
        together. Its ``found_inf`` and ``grad_scale`` belong to the meter from now on,
            and ``step`` leaves the clipped gradients in ``grad``. A learning rate may be a tensor.
        parameters: those whose gradient is measured and clipped, all on one device. max_norm: the gradient is
        divided so that its norm is at most this. buffers: what a train-mode forward pass writes
        (``running_statistics``), put back after a refused step. limits: ceilings for this very batch; without
        them only what is not finite is refused. history: steps that the host may run ahead before ``arrived``
        waits. loss_scale: what the loss was multiplied by before backward; the gradients are divided by it in
        the update, and it is adapted after it. reduce: what several processes make of their parts of a batch;
        with it numbers from a GPU are handed out after exactly ``history`` steps, so that all of them hear of
        a step at the same time. modules: whose norms are measured beside the whole one, every twenty steps.
        strain: what looks at the size of the updates; without one every fourth.

    ``applied`` (int64, on the device) counts the updates that were not refused, ``iteration`` all measured
    steps. ``clip_factor``, a scalar on the device, is multiplied into the norm to clip to.

    Raises:
        ValueError: the optimizer has no way to refuse on the device, or ``max_norm`` is not positive.
    """

    def __init__(
        self,
        objective: str,
        optimizer: Optimizer | Sequence[Optimizer],
        parameters: Iterable[Tensor],
        *,
        max_norm: float,
        buffers: Sequence[Tensor] = (),
        limits: Limits | None = None,
        history: int = 2,
        loss_scale: LossScale | None = None,
        reduce: Reduce | None = None,
        modules: ModuleNorms | None = None,
        strain: Strain | None = None,
    ) -> None:
        self.optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        if not max_norm > 0:
            raise ValueError(f"objective {objective!r}: max_norm is {max_norm}; give a positive norm")
        self.objective, self.iteration = objective, 0
        self._parameters = list(parameters)
        device = self._parameters[0].device
        self.applied = torch.zeros((), dtype=torch.int64, device=device)
        self._limits = limits if limits is not None else Limits(device)
        self._shadow = Shadow(buffers)
        self.loss_scale = loss_scale
        self._reduce = reduce or of_one_process
        self._strain = strain if strain is not None else Strain(self.optimizers)
        self._found_inf = torch.zeros((), device=device)
        self._clip = torch.ones((), device=device)
        self._grad_scale = self._clip if loss_scale is None else torch.ones((), device=device)
        self._whole = torch.ones((), device=device)
        largest = torch.finfo(torch.float32).max
        self._most = torch.tensor([largest, largest, max_norm], device=device)
        self.clip_factor = torch.ones((), device=device)
        self._measured: tuple[StepLosses, Tensor, Tensor, Tensor] | None = None
        self._scaled: list[Tensor] = []
        self._missing: tuple[int, ...] = ()
        self._frozen: tuple[int, ...] = ()
        self._modules = modules
        self._by_module: Tensor | None = None
        self._courier = Courier(history, in_step=reduce is not None)
        for one in self.optimizers:
            self._take_over(one)

    def protect(self) -> None:
        """Before the forward pass: remember the buffers that it will write."""
        self._shadow.take()

    @torch.no_grad()
    def undo_forward(self) -> None:
        """No update will follow the forward pass: the buffers are again what ``protect`` remembered."""
        self._shadow.put_back(torch.ones_like(self._found_inf, dtype=torch.bool))

    @torch.no_grad()
    def measure(self, losses: StepLosses, carried: Tensor | None = None) -> Tensor:
        """After backward: decide on the step, and tell the optimizer. Answers ``refused``, a device bool.

        The step is bad if its loss or its gradient's norm is not finite or above its ceiling. A later
        objective of the same batch gets ``carried``, the answer for the earlier one, and is refused along
        with it.

        Raises:
            ValueError: no parameter has a gradient.
        """
        grads = [own_part(p.grad) for p in self._parameters if p.grad is not None]
        if not grads:
            raise ValueError(
                f"objective {self.objective!r}: no parameter has a gradient; call backward first"
            )
        self._missing = self._frozen = ()
        if len(grads) < len(self._parameters):
            self._missing, self._frozen = self._without_gradient(), self._without_gradient(is_frozen=True)
        whole = self._reduce(losses, self._limits.terms(_times(losses)), grads)
        losses, norm = whole.losses, whole.norm
        self._by_module = self._look_at_modules()
        if self.loss_scale is not None:
            norm = norm / self.loss_scale.scale
            self._scaled = self._look_at_scale(grads)
        ceilings = torch.minimum(ceilings_of(whole.terms), self._most)
        measured = torch.stack((losses.total, norm))
        # written as a negated "fits", it is true for NaN as well
        bad = ~((measured <= ceilings[:2]) & (measured > -torch.inf)).all()
        refused = bad if carried is None else torch.logical_or(bad, carried)
        # fmax ignores NaN, and what a refused step has here is never used
        torch.fmax(norm / (ceilings[2] * self.clip_factor), self._whole, out=self._clip)
        if self.loss_scale is not None:
            torch.mul(self._clip, self.loss_scale.scale, out=self._grad_scale)
        self._strain.look(self.iteration, self._grad_scale)
        self._found_inf.copy_(refused)
        self._measured = losses, measured, bad, refused
        return refused

    def step(self) -> None:
        """Apply the update, unless it is refused: in place of ``optimizer.step()``."""
        for optimizer in self.optimizers:
            optimizer.step()

    @torch.no_grad()
    def settle(self, lr: Tensor | float) -> None:
        """After ``optimizer.step()``: undo what a refused step wrote elsewhere, send off the numbers."""
        assert self._measured is not None, "settle comes after measure"
        losses, measured, bad, refused = self._measured
        self._measured = None
        self._shadow.put_back(refused)
        self._send(losses, measured, bad, lr)
        if self.loss_scale is not None:
            self.loss_scale.update(self.loss_scale.is_overflow(*measured), measured[1])
        self.applied.add_(~refused)
        self.iteration += 1

    def arrived(self, wait: bool = False) -> list[Vitals]:
        """Vitals that have reached the host since the last call, in order; with ``wait`` all of them."""
        return [self._read(parcel, numbers) for parcel, numbers in self._courier.arrived(wait)]

    def restore(self, applied: int, iteration: int) -> None:
        """Set the counters to a saved state's, and forget what is under way: it is of a lost stretch."""
        self.applied.fill_(applied)
        self.iteration = iteration
        self._courier.forget()

    def release(self) -> None:
        """The optimizers obey nobody from now on: the last answer would refuse or clip for ever."""
        for optimizer in self.optimizers:
            for name in ("found_inf", "grad_scale"):
                vars(optimizer).pop(name, None)

    def _take_over(self, optimizer: Optimizer) -> None:
        """Have the optimizer's kernel read what this meter decides."""
        check_refusable(optimizer, self.objective)
        prime(optimizer)
        optimizer.found_inf = self._found_inf  # type: ignore[attr-defined]
        optimizer.grad_scale = self._grad_scale  # type: ignore[attr-defined]

    def _look_at_modules(self) -> Tensor | None:
        """The norm of each module's gradient, where it is time to look."""
        if self._modules is None or self.iteration % EVERY:
            return None
        each = self._modules.measure()
        return each if self.loss_scale is None else each / self.loss_scale.scale

    def _without_gradient(self, *, is_frozen: bool = False) -> tuple[int, ...]:
        """Places of the parameters that have none though they wish for one, or that don't wish for one."""
        return tuple(
            place
            for place, parameter in enumerate(self._parameters)
            if parameter.grad is None and parameter.requires_grad is not is_frozen
        )

    def _look_at_scale(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """The scale as it is in this step and, every so often, the share of zeros; NaN is not measured."""
        assert self.loss_scale is not None
        is_due = self.iteration % self.loss_scale.zeros_every == 0
        zeros = share_of_zeros(grads) if is_due else torch.full_like(self._clip, torch.nan)
        return [self.loss_scale.scale.clone(), zeros]

    def _send(self, losses: StepLosses, measured: Tensor, bad: Tensor, lr: Tensor | float) -> None:
        per_sample, times = losses.per_sample, _times(losses)
        scalars = [self._clip, bad, self._found_inf, *losses.parts.values()]
        if isinstance(lr, Tensor):
            scalars.append(lr)
        scalars.extend(self._scaled)
        pieces = [self.applied.reshape(1), measured, torch.stack(scalars)]
        vectors = (self._by_module, self._strain.measured(measured), per_sample, times)
        pieces.extend(vector for vector in vectors if vector is not None)
        parcel = Parcel(
            iteration=self.iteration,
            lr=None if isinstance(lr, Tensor) else lr,
            parts=tuple(losses.parts),
            modules=() if self._modules is None or self._by_module is None else self._modules.names,
            samples=0 if per_sample is None else len(per_sample),
            scaled=self.loss_scale is not None,
            missing=self._missing,
            frozen=self._frozen,
        )
        self._courier.send(parcel, pieces)

    def _read(self, record: Parcel, values: list[float]) -> Vitals:
        numbers = iter(values)
        step, loss, grad_norm, clip, bad, refused = islice(numbers, 6)
        parts = dict(zip(record.parts, islice(numbers, len(record.parts)), strict=True))
        lr = next(numbers) if record.lr is None else record.lr
        scale, zeros = islice(numbers, 2) if record.scaled else (1.0, math.nan)
        modules = dict(zip(record.modules, islice(numbers, len(record.modules)), strict=True))
        ratio, lag = islice(numbers, 2)
        return Vitals(
            objective=self.objective,
            iteration=record.iteration,
            step=int(step),
            loss=loss,
            grad_norm=grad_norm,
            clip=1.0 if refused else clip,
            refused=bool(refused),
            reason=self._reason(loss, grad_norm, scale) if bad else None,
            parts=parts,
            lr=lr,
            sample_losses=tuple(islice(numbers, record.samples)),
            times=tuple(numbers),
            loss_scale=scale,
            zero_share=_unless_nan(zeros),
            missing=record.missing,
            frozen=record.frozen,
            module_norms=modules,
            update_ratio=_unless_nan(ratio),
            moment_lag=_unless_nan(lag),
        )

    def _reason(self, loss: float, grad_norm: float, scale: float) -> Reason:
        if not math.isfinite(loss):
            return "nonfinite_loss"
        if math.isfinite(grad_norm):
            return "spike"
        is_scaled = self.loss_scale is not None and scale > self.loss_scale.floor
        return "overflow" if is_scaled else "nonfinite_grad"


def _times(losses: StepLosses) -> Tensor | None:
    """The times, if they can be told apart by their losses."""
    return losses.times if losses.per_sample is not None else None


def _unless_nan(number: float) -> float | None:
    """NaN stands for what was not measured."""
    return None if math.isnan(number) else number
