"""Gradients that float16 has lost: elements that became exactly 0, without a trace in loss or norm."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from shared.events import Finding, Severity
from trainer.guards.base import StepView, finding
from trainer.guards.loss_scale import ZEROS_EVERY
from trainer.section import Section


class UnderflowConfig(Section):
    count_every: int = Field(
        ZEROS_EVERY, ge=1, description="Steps between counts; each is one pass over the gradients."
    )
    more_than_usual: float = Field(
        0.05, gt=0, le=1, description="Tell when this share of the gradient became 0 beyond the least seen."
    )


class Underflow:
    """Warns once when the share of zeros in the gradients rises; it is counted where there is a loss scale.

    Some zeros are honest (a dead unit, a position that no window has), so a share is judged by the least that
    the same objective has had.
    """

    name = "underflow"
    scans = False

    def __init__(self, config: UnderflowConfig | None = None) -> None:
        self._config = config or UnderflowConfig()
        self._least: dict[str, float] = {}
        self._told: list[str] = []

    def inspect(self, view: StepView) -> Finding | None:
        vitals = view.vitals
        share, objective = vitals.zero_share, vitals.objective
        if share is None or vitals.refused:
            return None
        least = self._least[objective] = min(share, self._least.get(objective, share))
        if share <= least + self._config.more_than_usual:
            self._told = [name for name in self._told if name != objective]
            return None
        if objective in self._told:
            return None
        self._told.append(objective)
        message = (
            f"{objective}: {share:.1%} of the gradient's elements are exactly 0, {least:.1%} at best: "
            f"float16 loses the small ones at loss scale {vitals.loss_scale:g}; bf16 would keep them"
        )
        reading = {"zero_share": share, "least": least, "loss_scale": vitals.loss_scale}
        return finding(self.name, view, Severity.WARNING, message, **reading)

    def state_dict(self) -> dict[str, Any]:
        return {"least": self._least, "told": self._told}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._least, self._told = dict(state["least"]), list(state["told"])
