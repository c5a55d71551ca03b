"""The words all guards share: what a step gives, what a guard answers, and the few tensor sums they need."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from shared.events import Finding, Severity

Reason = Literal["nonfinite_loss", "nonfinite_grad", "spike", "overflow"]


class StepLosses(Protocol):
    """What an objective's forward pass gives. Everything stays on the device.

    ``total`` is a scalar with its graph, ``parts`` are detached scalars. ``per_sample`` and ``times`` are
    (B,), the times in (0, 1]; an objective without a diffusion time has ``None`` there.
    """

    @property
    def total(self) -> Tensor: ...
    @property
    def parts(self) -> Mapping[str, Tensor]: ...
    @property
    def per_sample(self) -> Tensor | None: ...
    @property
    def times(self) -> Tensor | None: ...


@dataclass(frozen=True, slots=True)
class PlainLoss:
    """A step's loss and nothing more: neither parts nor samples are told."""

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    per_sample: Tensor | None = None
    times: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Vitals:
    """The numbers of one objective's step, on the host. Any of the measured ones may be NaN or infinite.

    ``iteration`` counts measured steps, ``step`` the applied updates before this one; ``grad_norm`` is taken
    before clipping and ``clip`` (>= 1) is what the gradient was divided by, 1 on a refused step. A step that
    is ``refused`` without a ``reason`` went with an earlier objective of the same batch; one that is refused
    for an ``overflow`` was skipped because of its ``loss_scale``, which belongs to float16 and is 1 without
    one. ``zero_share`` is the share of gradient elements that are exactly 0, where it was measured; so are
    ``update_ratio`` and ``moment_lag`` (``strain.py``), which say nothing of a refused step.
    ``missing`` are the places of parameters without a gradient, ``frozen`` of those that wished for none.
    ``module_norms`` are the parts of ``grad_norm``, by module, where they were measured.
    """

    objective: str
    iteration: int
    step: int
    loss: float
    parts: dict[str, float]
    grad_norm: float
    clip: float
    lr: float
    refused: bool
    reason: Reason | None
    sample_losses: tuple[float, ...] = ()
    times: tuple[float, ...] = ()
    loss_scale: float = 1.0
    zero_share: float | None = None
    missing: tuple[int, ...] = ()
    frozen: tuple[int, ...] = ()
    module_norms: dict[str, float] = field(default_factory=dict)
    update_ratio: float | None = None
    moment_lag: float | None = None

    @property
    def is_at_fault(self) -> bool:
        """Whether it was refused for a reason of its own, and not because its loss scale was too high."""
        return self.reason is not None and self.reason != "overflow"


@dataclass
class Watched:
    """Live handles for scans: the model, its optimizers by objective, and the EMA by parameter name.

    Further optimizers of an objective have its name before a comma: ``loss``, ``loss, heads``.
    ``applied`` are the counts of applied updates by objective, on the device (``Meter.applied``);
    ``averaged`` answers how many updates the EMA has taken in, and how many it should have, likewise.
    """

    model: nn.Module
    optimizers: Mapping[str, Optimizer]
    ema: Mapping[str, Tensor] | None = None
    applied: Mapping[str, Tensor] = field(default_factory=dict)
    averaged: Callable[[], tuple[Tensor, Tensor]] | None = None

    def optimizers_of(self, objective: str) -> dict[str, Optimizer]:
        """Those that step with this objective, under their own names."""
        return {
            name: optimizer
            for name, optimizer in self.optimizers.items()
            if name == objective or (name not in self.applied and name.startswith(f"{objective}, "))
        }


@dataclass(frozen=True, slots=True)
class StepView:
    """One judged step. With ``alarm`` set, a guard that scans does so now, whatever its schedule says.

    The vitals are those of a step or two ago; ``watched`` is as it is now.
    """

    vitals: Vitals
    sample_ids: tuple[str, ...]
    watched: Watched
    alarm: bool = False


class Guard(Protocol):
    """Watches one thing, changes nothing, and remembers in ``state_dict`` (plain JSON, finite numbers only).

    A guard that ``scans`` reads tensors, on its schedule and on alarm; the panel asks it after those that
    don't, so that their alarm reaches it within the same step.
    """

    @property
    def name(self) -> str: ...
    @property
    def scans(self) -> bool: ...
    def inspect(self, view: StepView) -> Finding | None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Verdict(IntEnum):
    """What the loop does next; the larger is the graver.

    ``STOP`` is the recovery ladder's answer when its budget is spent. It is a guard's where no earlier state
    could help, because the program is wrong: its finding is critical and has ``ENDS`` in its reading.
    """

    PROCEED = 0
    SKIP_STEP = 1
    ROLL_BACK = 2
    STOP = 3


_ANSWERS = {
    Severity.INFO: Verdict.PROCEED,
    Severity.WARNING: Verdict.PROCEED,
    Severity.ERROR: Verdict.SKIP_STEP,
    Severity.CRITICAL: Verdict.ROLL_BACK,
}


ENDS = "ends"
"""The key in a finding's reading that ends the run; its value says what is to be mended."""


def verdict_on(finding: Finding) -> Verdict:
    """``error``: the step was or must be refused. ``critical``: the state itself is corrupt."""
    if ENDS in finding.reading:
        return Verdict.STOP
    return _ANSWERS[finding.severity]


def finding(guard: str, view: StepView, severity: Severity, message: str, **reading: float | str) -> Finding:
    """A finding about the viewed step; the objective is part of the reading."""
    vitals = view.vitals
    return Finding(
        step=vitals.step,
        guard=guard,
        severity=severity,
        message=message,
        reading={"objective": vitals.objective, **reading},
    )


def every(steps: int) -> Callable[[int], bool]:
    """A schedule: true at ``steps``, ``2 * steps``, …

    Raises:
        ValueError: ``steps`` below 1.
    """
    if steps < 1:
        raise ValueError(f"a schedule of every {steps} steps never comes; give 1 or more")
    return lambda step: step > 0 and step % steps == 0


_WHOLE = frozenset({Tensor, nn.Parameter})


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that is sharded over several, maybe nothing; any other as it is.

    Shares its memory. A guard looks at that part only: the others look at theirs.
    """
    if type(tensor) in _WHOLE:  # a thousand times a step: no attribute is searched for
        return tensor
    to_local = getattr(tensor.detach(), "to_local", None)
    return tensor if to_local is None else to_local()


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm of each tensor, (N,), still on their device: finite only if every element is.

    One multi-tensor read. The sums are in float32 whatever the tensors are in, since a float16 sum overflows
    at a norm of 65504; float64 tensors are summed in float64. Elements above about 1e19 overflow float32 too.
    """
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    dtype = torch.float64 if wide else torch.float32
    return torch.stack(torch._foreach_norm(list(map(own_part, tensors)), 2, dtype=dtype))


def parameter_names(model: nn.Module) -> dict[Tensor, str]:
    """Each parameter's name in the model; one that is shared has its first."""
    return {parameter: name for name, parameter in model.named_parameters()}


def count_nonfinite(tensor: Tensor) -> int:
    """NaN or infinite elements of one tensor. One host read: for the search after an alarm."""
    return int(torch.count_nonzero(~torch.isfinite(own_part(tensor))).item())
