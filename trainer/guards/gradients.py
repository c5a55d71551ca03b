"""Gradients that are no more: all of them exactly 0, or those of a layer that had them missing."""

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from pydantic import Field

from shared.events import Finding, Severity
from trainer.guards.base import ENDS, StepView, finding, parameter_names
from trainer.section import Section

_NAMED = 3


class GradientsConfig(Section):
    """When a gradient that is gone is no accident."""

    patience: int = Field(3, ge=1, description="Steps in a row without a gradient after which it is told.")
    known_after: int = Field(
        32, ge=1, description="Steps with a gradient each after which a parameter is known to have one."
    )


class Gradients:
    """A loss that is cut off from the weights: detached, computed from a constant, or past one layer.

    Something is wrong with the program, which no earlier state mends: so this ends the run if it is the first
    objective's, with the layer's name. Of a later objective (a discriminator that has won, say) it is a
    warning. Host arithmetic, no device read.

    - *Zero*: a norm of exactly 0 though the loss is not, ``patience`` steps in a row.
    - *Missing*: a parameter that had a gradient in each of its first ``known_after`` steps and ever since has
      none ``patience`` steps in a row. One that was missing for a shorter while is left alone from then on:
      its layer is passed over at times.
    - One that had none in all of the first ``known_after`` steps is told once, as a warning.
    - *Frozen* on purpose (``requires_grad_(False)``, at any time) is no fault; one that thaws is to be known
      anew first.
    """

    name = "gradients"
    scans = False

    def __init__(self, config: GradientsConfig | None = None) -> None:
        self._config = config or GradientsConfig()
        self._known: dict[str, _Known] = {}

    def inspect(self, view: StepView) -> Finding | None:
        known = self._known.setdefault(view.vitals.objective, _Known())
        return self._zero(view, known) or self._missing(view, known)

    def state_dict(self) -> dict[str, Any]:
        return {objective: known.state_dict() for objective, known in self._known.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._known = {objective: _Known.of(saved) for objective, saved in state.items()}

    def _zero(self, view: StepView, known: "_Known") -> Finding | None:
        vitals = view.vitals
        known.zeros = known.zeros + 1 if vitals.grad_norm == 0 and vitals.loss != 0 else 0
        if known.zeros != self._config.patience:
            return None
        words = (
            f"every gradient has been exactly 0 for {known.zeros} steps, at a loss of {vitals.loss:.4g}: the "
            "loss does not depend on the weights (detached, or computed from a constant)"
        )
        return self._tell(view, words, "connect the loss with the weights")

    def _missing(self, view: StepView, known: "_Known") -> Finding | None:
        """Costs a comparison while nothing is missing, and nothing was."""
        missing, frozen = set(view.vitals.missing), view.vitals.frozen
        known.steps += 1
        if frozen or known.thawing:
            missing -= known.still_unknown(missing, frozen, self._config.known_after)
        if missing or known.gone or known.never:
            known.follow(missing, is_learning=known.steps <= self._config.known_after)
        if known.steps == self._config.known_after and known.never:
            words = f"{self._layers(view, known.never)} had no gradient in the first {known.steps} steps"
            return finding(self.name, view, Severity.WARNING, f"{view.vitals.objective}: {words}")
        lost = [place for place, steps in known.gone.items() if steps == self._config.patience]
        if not lost:
            return None
        words = (
            f"{self._layers(view, lost)} gets no gradient any more, {self._config.patience} steps in a row"
        )
        return self._tell(view, words, "something cuts it off the loss")

    def _tell(self, view: StepView, words: str, mend: str) -> Finding:
        objective = view.vitals.objective
        if objective != next(iter(view.watched.optimizers), objective):
            return finding(self.name, view, Severity.WARNING, f"{objective}: {words}")
        ends: dict[str, str] = {ENDS: mend}
        message = f"{objective}: {words}; {mend}; going back would not help"
        return finding(self.name, view, Severity.CRITICAL, message, **ends)

    def _layers(self, view: StepView, places: Iterable[int]) -> str:
        """Names of what has these places, the parameters of one module together."""
        names = [_name(view, place) for place in sorted(places)]
        layers = [
            f"{module} ({', '.join(name.rpartition('.')[2] for name in group)})" if module else next(group)
            for module, group in groupby(names, key=lambda name: name.rpartition(".")[0])
        ]
        more = f" and {len(layers) - _NAMED} more layers" if len(layers) > _NAMED else ""
        return f"{', '.join(layers[:_NAMED])}{more}"


class _Known:
    """What is known of one objective's gradients."""

    def __init__(self) -> None:
        self.zeros = self.steps = 0
        self.never: set[int] = set()
        self.sometimes: set[int] = set()
        self.gone: dict[int, int] = {}
        """Steps in a row without one, of parameters that should have one."""
        self.thawing: dict[int, int] = {}
        """Steps with one, of parameters that were frozen and are not known since."""

    def still_unknown(self, missing: set[int], frozen: Iterable[int], known_after: int) -> set[int]:
        """Which parameters nobody may miss in this step: they are frozen, or were until a while ago."""
        self.thawing |= dict.fromkeys(frozen, 0)
        for place in self.thawing.keys() - set(frozen):
            self.thawing[place] += 1
            if place in missing:
                self.sometimes.add(place)
        unknown = set(self.thawing)
        self.never -= unknown
        self.gone = {place: steps for place, steps in self.gone.items() if place not in unknown}
        self.thawing = {place: steps for place, steps in self.thawing.items() if steps < known_after}
        return unknown

    def follow(self, missing: set[int], *, is_learning: bool) -> None:
        """Take in which parameters had none in this step."""
        if is_learning:
            self.never = missing if self.steps == 1 else self.never & missing
            self.sometimes |= missing
            return
        self.sometimes |= self.gone.keys() - missing
        self.gone = {place: self.gone.get(place, 0) + 1 for place in sorted(missing - self.sometimes)}

    def state_dict(self) -> dict[str, Any]:
        gone = [[place, steps] for place, steps in self.gone.items()]
        sets = {"never": sorted(self.never), "sometimes": sorted(self.sometimes)}
        thawing = [[place, steps] for place, steps in self.thawing.items()]
        return {"zeros": self.zeros, "steps": self.steps, "gone": gone, "thawing": thawing, **sets}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "_Known":
        known = cls()
        known.zeros, known.steps = state["zeros"], state["steps"]
        known.never, known.sometimes = set(state["never"]), set(state["sometimes"])
        known.gone, known.thawing = dict(state["gone"]), dict(state.get("thawing", []))
        return known


def _name(view: StepView, place: int) -> str:
    """Its name in the model, if the meter has its parameters in the optimizer's order."""
    optimizer = view.watched.optimizers[view.vitals.objective]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    names = parameter_names(view.watched.model)
    return next((names[p] for p in parameters[place : place + 1] if p in names), f"parameter {place}")
