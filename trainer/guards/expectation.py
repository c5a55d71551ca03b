"""What a step usually costs: robust statistics that a single bad step can neither enter nor shift.

All in natural logarithms: losses and norms are positive, and their tails close to log-normal. ``state_dict``
of each is plain JSON with finite numbers, and restores to the bit.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.guards.limits import BINS

_LAST_FEW = 16


class Residuals:
    """Median and robust deviation of the accepted residuals. What is not known yet is unlimited.

    The usual residual is the higher of two medians, of the window and of the last few: when a fast descent
    ends, the losses rise towards what is expected sooner than the window follows, and that is no spike.
    """

    def __init__(self, window: int, warm_up: int, refresh: int, floor: float) -> None:
        self._warm_up, self._refresh, self._floor = warm_up, refresh, floor
        self._recent: deque[float] = deque(maxlen=window)
        self._count = 0
        self.usual, self.scale = 0.0, math.inf

    def accept(self, residual: float) -> None:
        """Take in the residual of a normal step. The first medians need ``warm_up`` of them."""
        self._recent.append(residual)
        self._count += 1
        if self._count >= self._warm_up and self._count % self._refresh == 0:
            values = np.asarray(self._recent)
            median = np.median(values)
            deviation = 1.4826 * float(np.median(np.abs(values - median)))
            self.usual = float(max(median, np.median(values[-_LAST_FEW:])))
            self.scale = max(deviation, self._floor)

    def z(self, residual: float) -> float:
        """Robust deviations above the usual; 0 while nothing is known."""
        return (residual - self.usual) / self.scale

    def at(self, z: float) -> float:
        """The residual that is ``z`` robust deviations above the usual: infinite while nothing is known."""
        return self.usual + z * self.scale

    def state_dict(self) -> dict[str, Any]:
        return {
            "recent": list(self._recent),
            "count": self._count,
            "usual": self.usual,
            "scale": self.scale if math.isfinite(self.scale) else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._recent = deque(state["recent"], maxlen=self._recent.maxlen)
        self._count, self.usual = state["count"], state["usual"]
        self.scale = math.inf if state["scale"] is None else state["scale"]


class LossOfTime:
    """Mean log loss of each of 32 bins of diffusion time. Without times, bin 0 holds that of the steps."""

    def __init__(self, least_rate: float) -> None:
        self._least_rate = least_rate
        self._means, self._counts = [0.0] * BINS, [0] * BINS

    @property
    def is_empty(self) -> bool:
        return not any(self._counts)

    def learn(self, bins: Sequence[int], losses: Sequence[float]) -> None:
        """Take in each sample's loss, (B,), at its bin; what has no logarithm is left out."""
        for place, loss in zip(bins, losses, strict=True):
            if loss > 0 and math.isfinite(loss):
                self._counts[place] += 1
                rate = max(self._least_rate, 1 / self._counts[place])
                self._means[place] += rate * (math.log(loss) - self._means[place])

    def expected(self) -> list[float]:
        """Expected loss of each bin, 32 of them; a bin not seen yet is filled in from its neighbours."""
        seen = [place for place in range(BINS) if self._counts[place]]
        if not seen:
            return [1.0] * BINS
        means = np.interp(range(BINS), seen, [self._means[place] for place in seen])
        return [math.exp(mean) for mean in means]

    def state_dict(self) -> dict[str, Any]:
        return {"means": list(self._means), "counts": list(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._means, self._counts = list(state["means"]), list(state["counts"])


class NormOfLoss:
    """Log gradient norm as a line over the log rms of the expected losses: weighted least squares."""

    def __init__(self, forgetting: float) -> None:
        self._forgetting = forgetting
        self._sums = [0.0] * 5  # weight, x, y, x * x, x * y

    def line(self) -> tuple[float, float] | None:
        """Offset and slope, once some 20 steps are known. Where x hardly varies the slope is 0."""
        weight, x, y, xx, xy = self._sums
        if weight <= 20:
            return None
        spread = weight * xx - x * x
        slope = (weight * xy - x * y) / spread if spread > 1e-4 * weight * weight else 0.0
        return (y - slope * x) / weight, slope

    def learn(self, x: float, y: float) -> None:
        """Take in one step: x its expected log loss (rms over the batch), y the log of its gradient norm."""
        new = (1.0, x, y, x * x, x * y)
        self._sums = [self._forgetting * old + one for old, one in zip(self._sums, new, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {"sums": list(self._sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums = list(state["sums"])
