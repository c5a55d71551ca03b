"""A batch whose numbers are on their way from the device to the host."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.guards.base import Vitals
from trainer.guards.randomness import Randomness

Batch = Mapping[str, Any]


@dataclass
class Taken:
    """What was taken, when, under which random states; ``vitals`` are those of the objectives so far."""

    iteration: int
    sample_ids: tuple[str, ...]
    begun: float
    fetch_seconds: float
    batch: Batch
    random: Randomness
    is_replay: bool = False
    vitals: list[Vitals] = field(default_factory=list)

    @property
    def is_suspect(self) -> bool:
        """Whether somebody will ask which samples it was: refused, or a number is not finite."""
        return any(
            one.refused or not all(map(math.isfinite, (one.loss, one.grad_norm, *one.parts.values())))
            for one in self.vitals
        )
