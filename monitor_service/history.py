"""What the losses of an attempt were like so far, in five numbers that each batch moves on.

Nothing is read again: a level (smoothed), how far values scatter around it, and the lowest level with the
scatter of that time. Outliers and values that are not finite leave them almost alone: of a batch the median
counts, and it moves the level by ten scatters at most.
"""

from collections.abc import Sequence
from statistics import median

from pydantic import Field

from monitor_service.record import Record

SMOOTHING = 0.02
"""Weight of one value: the level follows what has held for about 50 steps."""

WARM_AFTER = 50
"""Values until the level is one; before, there is no low to compare with."""

MOST_SCATTERS = 10.0
LARGEST = 1e300
"""What is above in size counts as not finite: differences and multiples of the others always are finite."""

SAMPLE = 64
"""Of a longer batch so many values are looked at, evenly spaced."""


class LossHistory(Record):
    """Running statistics of the finite losses of one attempt."""

    count: int = Field(0, ge=0, description="Finite losses seen.")
    level: float | None = None
    scatter: float = Field(0.0, ge=0, description="Typical distance of a loss from the level.")
    low: float | None = Field(None, description="The lowest level since it was warm.")
    low_scatter: float = Field(0.0, ge=0)

    def take(self, losses: Sequence[float]) -> None:
        """Fold in the losses of one batch, in the order of their steps."""
        finite = [loss for loss in losses[:: 1 + len(losses) // SAMPLE] if abs(loss) <= LARGEST]
        if not finite:
            return
        weight = 1.0 - (1.0 - SMOOTHING) ** len(finite)
        middle = median(finite)
        if self.level is None:
            self.level, weight = middle, 0.5
        level = self.level
        distance = median([abs(loss - level) for loss in finite])
        if self.count >= WARM_AFTER and self.scatter > 0:
            most = MOST_SCATTERS * self.scatter
            middle = min(max(middle, level - most), level + most)
            distance = min(distance, most)
        self.level = level + weight * (middle - level)
        self.scatter += weight * (distance - self.scatter)
        self.count += len(losses)
        if self.count >= WARM_AFTER and (self.low is None or self.level < self.low):
            self.low, self.low_scatter = self.level, self.scatter

    def has_risen(self, factor: float) -> bool:
        """Whether the level is above its low by ``factor``, and by more than its scatter explains.

        A loss may be negative: then the factor counts from the size of the low.
        """
        if self.level is None or self.low is None:
            return False
        return self.level - self.low > max((factor - 1.0) * abs(self.low), 3.0 * self.low_scatter)
