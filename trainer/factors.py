"""Factors on learning rate and clipping norm: turned down by recovery, and back up by themselves.

A factor lives on the device and is multiplied in there, so that the host reads nothing. It comes back in
five equal stages over the steps in which nothing is refused: a pure function of the step, so that a resumed
run has the factors that the killed one would have had.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from shared.events import Change
from trainer.section import Section

_STAGES = 5
_LEAST = 0.05

What = Literal["lr_factor", "clip_factor"]


class Lowered(Section):
    """What is turned down: from which step on, by how much, and what was told of it last."""

    since: int = 0
    lr: float = Field(1.0, gt=0)
    clip: float = Field(1.0, gt=0)
    rewarm: int = 0
    told: dict[str, float] = Field(default_factory=lambda: {"lr_factor": 1.0, "clip_factor": 1.0})
    incident: str | None = None

    def share(self, step: int, over: int) -> float:
        """How much of the way back is done at ``step``: 0 to 1 in five stages over ``over`` steps."""
        return min(max(step - self.since, 0) * _STAGES // over, _STAGES) / _STAGES

    def factors(self, step: int, over: int) -> dict[What, float]:
        """Both factors at ``step``, without the warm-up."""
        share = self.share(step, over)
        return {"lr_factor": _up(self.lr, share), "clip_factor": _up(self.clip, share)}

    def warmth(self, step: int) -> float:
        """The part of the learning rate that a new warm-up allows."""
        return min((max(step - self.since, 0) + 1) / self.rewarm, 1.0) if self.rewarm else 1.0


class Factors:
    """Keeps the device's scalars at what is due, and tells each change.

    Args:
        lr, clip: scalars on the device, all 1 in the beginning.
        tell: hears of each change; a new process starts from ``lowered`` as the last one left it.
        over: steps until both are 1 again.
    """

    def __init__(
        self,
        lr: Sequence[Tensor],
        clip: Sequence[Tensor],
        tell: Callable[[Change], None],
        over: int,
        lowered: Lowered | None = None,
    ) -> None:
        self._lr, self._clip, self._tell, self._over = list(lr), list(clip), tell, over
        self.lowered = lowered or Lowered()
        self._set = (1.0, 1.0)

    @property
    def is_usual(self) -> bool:
        """Whether both factors are 1 for good."""
        told = self.lowered.told.values()
        return self._set == (1.0, 1.0) and all(value == 1.0 for value in told)

    def lower(
        self, step: int, reason: str, *, lr: float, clip: float, rewarm: int, incident: str | None
    ) -> None:
        """Multiply what is in force at ``step`` by these, and begin the way back anew there."""
        now = self.lowered.factors(step, self._over)
        self.lowered = self.lowered.model_copy(
            update={
                "since": step,
                "lr": max(now["lr_factor"] * lr, _LEAST),
                "clip": max(now["clip_factor"] * clip, _LEAST),
                "rewarm": rewarm,
                "incident": incident,
            }
        )
        self.follow(step, reason)

    def follow(self, step: int, reason: str = "") -> None:
        """Set what is due for the update of ``step``. Costs a comparison while nothing is turned down."""
        if not reason and self.lowered.lr == self.lowered.clip == 1.0 and self.is_usual:
            return
        due = self.lowered.factors(step, self._over)
        for what, value in due.items():
            self._tell_of(step, what, value, reason)
        self._write(due["lr_factor"] * self.lowered.warmth(step), due["clip_factor"])

    def _tell_of(self, step: int, what: What, value: float, reason: str) -> None:
        previous = self.lowered.told[what]
        if value == previous:
            return
        self.lowered = self.lowered.model_copy(update={"told": {**self.lowered.told, what: value}})
        is_undo = value > previous
        words = reason or (
            "steps without a refusal" if is_undo else "the run went back to where it was lowered"
        )
        self._tell(
            Change(
                step=step,
                what=what,
                value=value,
                previous=previous,
                reason=words,
                is_undo=is_undo,
                incident=self.lowered.incident,
            )
        )

    def _write(self, lr: float, clip: float) -> None:
        if (lr, clip) != self._set:
            self._set = lr, clip
            with torch.no_grad():
                for scalar in self._lr:
                    scalar.fill_(lr)
                for scalar in self._clip:
                    scalar.fill_(clip)

    def state_dict(self) -> dict[str, Any]:
        """What is turned down, as JSON: of the run's record, which no rollback takes back."""
        return self.lowered.model_dump()


def _up(lowest: float, share: float) -> float:
    """From ``lowest`` to exactly 1."""
    return 1.0 if share >= 1 else lowest + (1 - lowest) * share
