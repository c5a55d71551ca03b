"""What all faults share: they strike a running loop from outside, at a step, as often as they are told.

A fault never touches a guard. It stands where the real one would: in a gradient, in a weight, in a file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from trainer.checkpoint import list_records
from trainer.config import Config
from trainer.data.radiomaps import RadioMaps
from trainer.drill.judge import Sighting
from trainer.guards.base import own_part
from trainer.loop import Loop, Observer
from trainer.passes import Phase


class Ground(Protocol):
    """Where a drill trains: a folder of its own, the maps, and the first stage's autoencoder.

    ``config`` may be replaced before a training.
    """

    config: Config

    @property
    def maps(self) -> RadioMaps: ...
    @property
    def folder(self) -> Path: ...

    ended: list[str]

    def train(self, observers: Sequence[Observer] = (), maps: RadioMaps | None = None) -> None:
        """Train to the end, or from where it stopped; how it ended is remembered, never raised."""


class Injection(Protocol):
    """A fault: ``inject`` trains with it in the way; ``struck_at`` is the step of the first strike."""

    struck_at: int | None

    def inject(self, ground: Ground) -> None: ...


@dataclass
class Fault:
    """Does ``strike`` at the start of ``phase`` of step ``at_step``, and of ``times - 1`` batches more.

    Not again when the run comes by a second time.
    """

    at_step: int
    phase: Phase
    strike: Callable[[Loop], None]
    times: int = 1
    struck_at: int | None = field(default=None, init=False)
    _struck: int = field(default=0, init=False)

    @property
    def struck(self) -> bool:
        """Whether it has struck at all."""
        return self.struck_at is not None

    def __call__(self, phase: Phase, loop: Loop) -> None:
        """Called by the loop at the start of every phase."""
        if self._struck < self.times and phase is self.phase and loop.state.step >= self.at_step:
            self.struck_at = loop.number if self.struck_at is None else self.struck_at
            self._struck += 1
            self.strike(loop)

    def inject(self, ground: Ground) -> None:
        """Train with this fault watching the phases."""
        ground.train([self])


def nan_gradient(at_step: int) -> Fault:
    """F09: one element of one gradient is NaN, once."""

    def strike(loop: Loop) -> None:
        gradient = largest_parameter(loop).grad
        assert gradient is not None, "measured right after backward"
        own_part(gradient).view(-1)[0] = torch.nan

    return Fault(at_step, Phase.MEASURE, strike)


def corrupt_weights(at_step: int, factor: float = 1000.0) -> Fault:
    """F20 for one tensor: weights that are finite, but a thousand times too large."""

    def strike(loop: Loop) -> None:
        with torch.no_grad():
            largest_parameter(loop).mul_(factor)

    return Fault(at_step, Phase.FETCH, strike)


def nan_weight(at_step: int) -> Fault:
    """F16: one weight is NaN."""

    def strike(loop: Loop) -> None:
        with torch.no_grad():
            largest_parameter(loop).view(-1)[0] = torch.nan

    return Fault(at_step, Phase.FETCH, strike)


def first_life(ground: Ground, at_step: int) -> None:
    """Train until there are checkpoints; not at all where the ground was laid with some."""
    root = ground.folder / "checkpoints"
    if not root.exists() or len(list_records(root)) < 2:
        ground.train([Fault(at_step, Phase.FETCH, lambda loop: loop.stop("the drill ends this life"))])


def passed_over(loop: Loop, at_step: int) -> Sighting | None:
    """What the ring says of a checkpoint that was not taken over."""
    bad = [one for one in loop.recovery.ring.records() if one.failed_check not in (None, "abandoned")]
    if not bad:
        return None
    words = f"{bad[0].name} fails {bad[0].failed_check}: {bad[0].found}"
    return Sighting("C", str(bad[0].failed_check), at_step, words)


def trained(loop: Loop) -> list[nn.Parameter]:
    """What the loop's first objective trains."""
    return [p for group in loop.objectives[0].optimizer.param_groups for p in group["params"]]


def gradients(loop: Loop) -> list[Tensor]:
    """The gradients at hand, after backward."""
    return [p.grad for p in trained(loop) if p.grad is not None]


def largest_parameter(loop: Loop) -> nn.Parameter:
    """The largest tensor that the loop's first objective trains."""
    return max(trained(loop), key=lambda parameter: parameter.numel())
