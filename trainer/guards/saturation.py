"""A part of the loss that sits on its limit: an adaptive weight on its clamp, say."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from shared.events import Finding, Severity
from trainer.guards.base import StepView, finding
from trainer.section import Section


class SaturationConfig(Section):
    """When a number that stands still has been clamped."""

    steps: int = Field(50, ge=2, description="Steps in a row of one value after which a part is told.")


class Saturation:
    """Warns once when a part of the loss that had changed is the same to the last bit, step after step.

    What is computed from a batch never is, so it has been cut off at a limit and its gradient is 0: the
    first stage's adversarial weight of a discriminator that has won, for instance. A part that never changed
    is a setting, and 0 is a part that is switched off. Host arithmetic, no device read.
    """

    name = "saturation"
    scans = False

    def __init__(self, config: SaturationConfig | None = None) -> None:
        self._config = config or SaturationConfig()
        self._known: dict[str, _Part] = {}

    def inspect(self, view: StepView) -> Finding | None:
        vitals = view.vitals
        stuck = []
        for name, value in {} if vitals.refused else vitals.parts.items():
            part = self._known.setdefault(f"{vitals.objective}/{name}", _Part())
            if part.take(value) == self._config.steps and part.has_changed and value != 0:
                stuck.append((name, value))
        if not stuck:
            return None
        name, value = stuck[0]
        message = (
            f"{vitals.objective}: part {name} has been exactly {value:g} for {self._config.steps} steps: it "
            "sits on a limit, and what it weighs is out of balance"
        )
        return finding(self.name, view, Severity.WARNING, message, part=name, value=value)

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._known.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._known = {name: _Part.of(saved) for name, saved in state.items()}


class _Part:
    """The last value of one part, how often it came in a row, and whether it was ever another."""

    def __init__(self) -> None:
        self.value: float | None = None
        self.steps = 0
        self.has_changed = False

    def take(self, value: float) -> int:
        """How many times in a row this value has come; NaN is equal to nothing."""
        if value == self.value:
            self.steps += 1
        else:
            self.has_changed = self.has_changed or self.value is not None
            self.value, self.steps = value, 1
        return self.steps

    def state_dict(self) -> list[Any]:
        value = self.value if self.value is not None and abs(self.value) < float("inf") else None
        return [value, self.steps, self.has_changed]

    @classmethod
    def of(cls, state: list[Any]) -> "_Part":
        part = cls()
        part.value, part.steps, part.has_changed = state
        return part
