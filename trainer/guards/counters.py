"""Counts that go together: applied updates, the steps of each optimizer state, the updates of the average."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shared.events import Finding, Severity
from trainer.guards.base import StepView, Vitals, Watched, every, finding, parameter_names
from trainer.guards.invariants import InvariantsConfig

_NAMED = 3


class Counters:
    """Counters that jumped, went back, or left each other behind: a schedule ahead, moments misjudged.

    *Each step, on the host:* an objective's vitals count one update more than those before them, or as many
    if those were refused. *On a scan, one device read:* no parameter's step counter in the optimizer went
    back, or took more steps than updates were applied (fewer are right where it had no gradient); and the
    average took in as many updates as were due, if ``watched.averaged`` tells.
    """

    name = "counters"
    scans = True

    def __init__(self, config: InvariantsConfig | None = None) -> None:
        self._due = every((config or InvariantsConfig()).scan_every)
        self._next: dict[str, int] = {}
        self._seen: dict[str, Vitals] = {}
        self._then: dict[str, list[float]] = {}
        self._average_behind: float | None = None
        self._scanned = -1

    def inspect(self, view: StepView) -> Finding | None:
        vitals = view.vitals
        jumped = self._jumped(view)
        if jumped is not None:
            return jumped
        if not view.alarm and (not self._due(vitals.iteration) or vitals.iteration == self._scanned):
            return None
        self._scanned = vitals.iteration
        now = _look(view.watched)
        problems = [*self._left_course(view.watched, now), *self._average_left(now)]
        if problems:
            more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
            message = f"counters are wrong: {'; '.join(problems[:_NAMED])}{more}"
            return finding(self.name, view, Severity.CRITICAL, message, problems=len(problems))
        self._refer_to(now)
        return None

    def rebase(self, watched: Watched) -> None:
        """The state was set from outside: count from here. One device read."""
        self._scanned = -1
        self._refer_to(_look(watched))

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next, "average_behind": self._average_behind}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._next, self._average_behind = dict(state["next"]), state["average_behind"]
        self._then = {}

    def _jumped(self, view: StepView) -> Finding | None:
        vitals = view.vitals
        if self._seen.get(vitals.objective) is vitals:
            return None  # asked again about the same step, for a scan
        self._seen[vitals.objective] = vitals
        expected = self._next.get(vitals.objective, vitals.step)
        self._next[vitals.objective] = vitals.step + (not vitals.refused)
        if vitals.step == expected:
            return None
        message = (
            f"{vitals.objective}: {vitals.step} updates are counted where {expected} were applied; "
            f"its schedule is {vitals.step - expected:+d} steps off"
        )
        return finding(self.name, view, Severity.CRITICAL, message, counted=vitals.step, applied=expected)

    def _refer_to(self, look: dict[str, list[float]]) -> None:
        self._then = look
        if "average" in look and self._average_behind is None:
            taken, due = look["average"]
            self._average_behind = due - taken

    def _left_course(self, watched: Watched, now: dict[str, list[float]]) -> list[str]:
        """Step counters that went back, or further than the updates that were applied."""
        problems = []
        for objective, (applied, *steps) in now.items():
            then = self._then.get(objective, [])
            if objective == "average" or len(then) != len(steps) + 1:
                continue
            most = applied - then[0]
            names = _names(watched, objective)
            for name, step, before in zip(names, steps, then[1:], strict=True):
                if not 0 <= step - before <= most:
                    problems.append(
                        f"the optimizer's step count of {name} went from {before:.15g} to {step:.15g} "
                        f"in {most:.15g} updates"
                    )
        return problems

    def _average_left(self, now: dict[str, list[float]]) -> list[str]:
        if "average" not in now or self._average_behind is None:
            return []
        taken, due = now["average"]
        missed = due - taken - self._average_behind
        if not missed:
            return []
        verb = "missed" if missed > 0 else "took in what was refused, or twice, in"
        return [f"the average {verb} {abs(missed):.15g} of the updates that were due"]


def _look(watched: Watched) -> dict[str, list[float]]:
    """Applied updates and all step counters of each objective; taken and due updates of the average.

    As floats, in which a count may be NaN or infinite: corrupt memory is what is looked for.
    """
    rows: dict[str, list[Tensor]] = {}
    for objective, applied in watched.applied.items():
        steps = [state["step"] for _, state in _counting(watched, objective)]
        if all(isinstance(step, Tensor) for step in steps):
            rows[objective] = [applied, *steps]
    if watched.averaged is not None:
        rows["average"] = list(watched.averaged())
    if not rows:
        return {}
    numbers = iter(_read([one for row in rows.values() for one in row]))
    return {name: [next(numbers) for _ in row] for name, row in rows.items()}


def _read(counts: Sequence[Tensor]) -> list[float]:
    """One read for each device: an Adam that is not fused counts on the host while a GPU trains."""
    places: dict[torch.device, list[int]] = {}
    for place, count in enumerate(counts):
        places.setdefault(count.device, []).append(place)
    values: dict[int, float] = {}
    for there in places.values():
        numbers = torch.stack([counts[place].double() for place in there]).cpu().numpy().tolist()
        values.update(zip(there, numbers, strict=True))
    return [values[place] for place in range(len(counts))]


def _names(watched: Watched, objective: str) -> list[str]:
    names = parameter_names(watched.model)
    return [names.get(parameter, "(unnamed)") for parameter, _ in _counting(watched, objective)]


def _counting(watched: Watched, objective: str) -> Iterator[tuple[Tensor, Mapping[str, Any]]]:
    """Parameters whose steps are counted, and the optimizer's state of each."""
    for optimizer in watched.optimizers_of(objective).values():
        yield from ((parameter, state) for parameter, state in optimizer.state.items() if "step" in state)
