"""The course of a run's losses: what no single step shows, but a hundred together do."""

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

from pydantic import Field

from shared.events import Finding, Severity
from trainer.guards.base import StepView, Vitals, finding
from trainer.guards.curve import Curve, CurveConfig
from trainer.section import Section


class DriftConfig(Section):
    every: int = Field(10, ge=1, description="Applied steps whose median loss is one point of the curve.")
    curve: CurveConfig = CurveConfig()


class Drift:
    """Divergence, a lost level, plateau, vanishing and collapse of one objective: warnings, never more.

    Host arithmetic on numbers that are there, no device read. In training a point of the curve is the median
    of ``every`` applied steps, in a log it is one row: the same judgement for both.
    """

    scans = False

    def __init__(self, objective: str, config: DriftConfig | None = None) -> None:
        self.objective, self.name = objective, f"drift.{objective}"
        self._config = config or DriftConfig()
        self._curve = Curve(self._config.curve)
        self._losses: list[float] = []
        self._norms: list[float] = []

    def inspect(self, view: StepView) -> Finding | None:
        vitals = view.vitals
        if vitals.objective != self.objective or vitals.refused or not math.isfinite(vitals.loss):
            return None
        self._take(vitals)
        if len(self._losses) < self._config.every:
            return None
        loss, norm = median(self._losses), median(self._norms) if self._norms else None
        if loss == 0:
            norm = (
                None  # a loss of exactly 0 explains a gradient of 0: a discriminator that waits for its turn
            )
        self._losses, self._norms = [], []
        seen = self._curve.update(vitals.step, loss, norm)
        if seen is None:
            return None
        message = f"{self.objective}: loss {loss:.4g} {seen.words}"
        return finding("drift", view, Severity.WARNING, message, kind=seen.kind, loss=loss, **seen.numbers)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self._losses), "norms": list(self._norms), "curve": self._curve.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._losses, self._norms = list(state["losses"]), list(state["norms"])
        self._curve.load_state_dict(state["curve"])

    def _take(self, vitals: Vitals) -> None:
        self._losses.append(vitals.loss)
        if math.isfinite(vitals.grad_norm):
            self._norms.append(vitals.grad_norm)
