"""A loss scale that is driven to its floor: float16 can't hold these gradients any more."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from shared.events import Finding, Severity
from trainer.guards.base import StepView, finding
from trainer.section import Section


class OverflowConfig(Section):
    """When overflows are more than the search for a scale."""

    row: int = Field(
        8,
        ge=1,
        description="Overflows in a row that are usual; one more, after the scale was found, is told.",
    )


class Overflow:
    """Warns when the loss scale reaches its floor, or falls without end after it had been found.

    A scaler that searches overflows a few times at the start: what counts is a row of them after a step that
    was applied. Growing activations are the known reason, and they come before a divergence: so the finding
    predicts one, and recovery lowers the rate for a while. The floor holds by itself (``LossScale``); a
    gradient that is not finite there is refused, replayed and its module named. Told once, until the scale
    has doubled again. Only where there is a loss scale; host arithmetic.
    """

    name = "overflow"
    scans = False

    def __init__(self, config: OverflowConfig | None = None) -> None:
        self._config = config or OverflowConfig()
        self._known: dict[str, dict[str, float]] = {}

    def inspect(self, view: StepView) -> Finding | None:
        vitals = view.vitals
        known = self._known.setdefault(vitals.objective, {"highest": 0, "row": 0, "applied": 0, "told_at": 0})
        known["highest"] = max(known["highest"], vitals.loss_scale)
        if known["told_at"] and vitals.loss_scale >= 2 * known["told_at"]:
            known["told_at"] = 0
        known["row"] = known["row"] + 1 if vitals.reason == "overflow" else 0
        known["applied"] += not vitals.refused
        is_at_floor = vitals.loss_scale <= 1 < known["highest"]
        is_endless = known["row"] > self._config.row and known["applied"] > 0
        if known["told_at"] or not (is_at_floor or is_endless):
            return None
        known["told_at"] = vitals.loss_scale
        where = "is at its floor" if is_at_floor else f"fell {known['row']:.0f} times in a row"
        message = (
            f"{vitals.objective}: the loss scale {where}, {vitals.loss_scale:g}: gradients are beyond the "
            'range of float16; bf16 has float32\'s (training.precision = "bf16")'
        )
        reading = {"loss_scale": vitals.loss_scale, "highest": known["highest"]}
        return finding(self.name, view, Severity.WARNING, message, predicts="divergence", **reading)

    def state_dict(self) -> dict[str, Any]:
        return {objective: dict(known) for objective, known in self._known.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._known = {objective: dict(known) for objective, known in state.items()}
