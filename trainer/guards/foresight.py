"""Divergence before it comes: several signs, each judged by its own past, that agree for a while.

    update ratio    |dw| / |w|, every few steps      moment lag    gradients against their second moments
    gradient norm   median of the last few looks     loss scale    overflows

A sign is high above its own p99.9. Two high signs at three looks in a row predict; an update ratio that runs
away from its past, and moves a hundredth of a matrix in one step, counts for two. Why: docs/decisions/0007.
"""

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

import numpy as np
from pydantic import Field

from shared.events import Finding, Severity
from trainer.guards.base import StepView, Vitals, finding
from trainer.section import Section

_P999 = 3.09  # standard deviations of a normal distribution
_MAD = 1.4826  # standard deviations in a median absolute deviation
_REFRESH = 8
_OVERFLOW_WINDOW = 1000  # measured steps
_SIGNS_NEEDED = 2


class ForesightConfig(Section):
    window: int = Field(256, ge=16, description="Looks at norm and lag that their p99.9 is taken of.")
    ratio_window: int = Field(
        128, ge=16, description="The same of the update ratio: its high start is soon no measure any more."
    )
    warm_up: int = Field(64, ge=16, description="Looks before the first decision.")
    smooth: int = Field(
        5, ge=1, description="Looks whose median is judged: of norm and lag, which are noisy."
    )
    least_rise: float = Field(0.3, gt=0, description="Log units above its median that no p99.9 is below.")
    in_a_row: int = Field(3, ge=1, description="Looks at which the signs must be high.")
    runaway_above: float = Field(1.5, ge=1, description="Update ratio, over its p99.9, that counts for two,")
    runaway_ratio: float = Field(0.01, gt=0, description="if it also is at least this.")
    new_level_after: int = Field(
        64, ge=8, description="Looks in a row that are high: a new level, learned anew."
    )
    overflow_share: float = Field(0.01, gt=0, lt=1, description="Of the last 1,000 steps: a sign.")
    again_after: int = Field(64, ge=1, description="Looks until it is told again.")


class Foresight:
    """Predicts the divergence of one objective: a warning, at which recovery lowers the rate for a while.

    Host arithmetic, no device read. Needs the update ratio or the moment lag in the vitals, which ``Meter``
    measures every fourth step; at the others it costs an append.
    """

    scans = False

    def __init__(self, objective: str, config: ForesightConfig | None = None) -> None:
        self.objective, self.name = objective, f"foresight.{objective}"
        self._config = config or ForesightConfig()
        self._signs = {
            "update_ratio": _Sign(self._config, self._config.ratio_window, smooth=1),
            "moment_lag": _Sign(self._config, self._config.window, self._config.smooth),
            "grad_norm": _Sign(self._config, self._config.window, self._config.smooth),
        }
        self._norms: list[float] = []
        self._overflows: deque[int] = deque(maxlen=_OVERFLOW_WINDOW)
        self._row, self._since_told = 0, self._config.again_after

    def inspect(self, view: StepView) -> Finding | None:
        vitals = view.vitals
        if vitals.objective != self.objective:
            return None
        if vitals.loss_scale != 1 or vitals.reason == "overflow":
            self._overflows.append(int(vitals.reason == "overflow"))
        if vitals.refused:
            return None
        if math.isfinite(vitals.grad_norm):
            self._norms.append(vitals.grad_norm)
        if vitals.update_ratio is None and vitals.moment_lag is None:
            return None
        high = self._look(vitals)
        self._row = self._row + 1 if sum(high.values()) >= _SIGNS_NEEDED else 0
        self._since_told += 1
        if self._row < self._config.in_a_row or self._since_told <= self._config.again_after:
            return None
        self._since_told = 0
        return self._predict(view, [name for name, weight in high.items() if weight])

    def state_dict(self) -> dict[str, Any]:
        return {
            "signs": {name: sign.state_dict() for name, sign in self._signs.items()},
            "norms": list(self._norms),
            "overflows": list(self._overflows),
            "row": self._row,
            "since_told": self._since_told,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, sign in self._signs.items():
            sign.load_state_dict(state["signs"][name])
        self._norms = list(state["norms"])
        self._overflows = deque(state["overflows"], maxlen=_OVERFLOW_WINDOW)
        self._row, self._since_told = state["row"], state["since_told"]

    def _look(self, vitals: Vitals) -> dict[str, int]:
        """How many signs each of them counts for: 0 while it is as it has been."""
        norm = median(self._norms) if self._norms else None
        self._norms.clear()
        values = {"update_ratio": vitals.update_ratio, "moment_lag": vitals.moment_lag, "grad_norm": norm}
        high = {name: int(sign.is_high(values[name])) for name, sign in self._signs.items()}
        if high["update_ratio"] and self._runs_away(vitals.update_ratio):
            high["update_ratio"] = _SIGNS_NEEDED
        share = sum(self._overflows) / _OVERFLOW_WINDOW
        return {**high, "loss_scale": int(share > self._config.overflow_share)}

    def _runs_away(self, ratio: float | None) -> bool:
        least = self._config.runaway_above * self._signs["update_ratio"].p999
        return ratio is not None and ratio >= max(least, self._config.runaway_ratio)

    def _predict(self, view: StepView, high: list[str]) -> Finding:
        vitals = view.vitals
        signs = {name: self._signs[name] for name in high if name in self._signs}
        told = [
            f"{_WORDS[name]} {one.now:.3g} (p99.9 until now {one.p999:.3g})" for name, one in signs.items()
        ]
        told += [f"{sum(self._overflows)} overflows"] * ("loss_scale" in high)
        message = (
            f"{self.objective}: divergence is coming: {', '.join(told)}, "
            f"for {self._config.in_a_row} looks in a row, at a learning rate of {vitals.lr:.3g}"
        )
        reading = {name: one.now for name, one in signs.items()}
        return finding("foresight", view, Severity.WARNING, message, predicts="divergence", **reading)


_WORDS = {
    "update_ratio": "update ratio",
    "moment_lag": "gradient over its second moments",
    "grad_norm": "gradient norm",
}


class _Sign:
    """One number, look by look, against its own p99.9. What is high never enters what is usual.

    The p99.9 is the higher of the window's own and a normal one's from median and MAD, in the log domain.
    """

    def __init__(self, config: ForesightConfig, window: int, smooth: int) -> None:
        self._config = config
        self._last: deque[float] = deque(maxlen=smooth)
        self._usual: deque[float] = deque(maxlen=window)
        self._count = self._high_in_a_row = 0
        self._threshold = math.inf

    def is_high(self, value: float | None) -> bool:
        """Take in one look; what was not measured, or has no logarithm, is none."""
        if value is None or not (value > 0 and math.isfinite(value)):
            return False
        self._last.append(math.log(value))
        level = median(self._last)
        if level <= self._threshold:
            self._high_in_a_row = 0
            self._accept(level)
            return False
        self._high_in_a_row += 1
        if self._high_in_a_row >= self._config.new_level_after:
            self._usual.clear()
            self._count, self._high_in_a_row, self._threshold = 0, 0, math.inf
        return True

    @property
    def now(self) -> float:
        """The level that was judged last."""
        return math.exp(median(self._last))

    @property
    def p999(self) -> float:
        """What it must exceed to be high: infinite while nothing is known."""
        return math.exp(self._threshold) if self._threshold < 700 else math.inf

    def state_dict(self) -> dict[str, Any]:
        return {
            "last": list(self._last),
            "usual": list(self._usual),
            "count": self._count,
            "high": self._high_in_a_row,
            "threshold": self._threshold if math.isfinite(self._threshold) else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._last = deque(state["last"], maxlen=self._last.maxlen)
        self._usual = deque(state["usual"], maxlen=self._usual.maxlen)
        self._count, self._high_in_a_row = state["count"], state["high"]
        self._threshold = math.inf if state["threshold"] is None else state["threshold"]

    def _accept(self, level: float) -> None:
        self._usual.append(level)
        self._count += 1
        if self._count < self._config.warm_up or self._count % _REFRESH:
            return
        values = np.asarray(self._usual)
        middle = float(np.median(values))
        deviation = _MAD * float(np.median(np.abs(values - middle)))
        normal = middle + max(_P999 * deviation, self._config.least_rise)
        self._threshold = max(normal, float(np.quantile(values, 0.999)))
