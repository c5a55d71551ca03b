"""All guards of a run: asks each one, survives a broken one, and answers with one verdict."""

import logging
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from shared.events import Finding, Severity
from trainer.guards.base import Guard, StepView, Verdict, Watched, finding, verdict_on

log = logging.getLogger(__name__)

_PATIENCE = 3  # a guard that raises so often in a row is switched off


@dataclass(frozen=True, slots=True)
class Judgement:
    """The gravest answer of all guards, and everything they saw."""

    verdict: Verdict
    findings: tuple[Finding, ...]

    @property
    def gravest(self) -> Finding | None:
        """The first finding that nothing outweighs."""
        return max(self.findings, key=verdict_on, default=None)


@runtime_checkable
class Rebasing(Protocol):
    """A guard that compares the state with an earlier look at it."""

    def rebase(self, watched: Watched) -> None: ...


class Panel:
    """Asks its guards about each step, those that scan last.

    A guard that raises is a finding of its own (warning, with the traceback in the log), and training goes
    on; after three times in a row it is switched off until its state is loaded anew.

    Raises:
        ValueError: two guards with one name, whose memories would overwrite each other.
    """

    def __init__(self, guards: Iterable[Guard]) -> None:
        self._guards = sorted(guards, key=lambda guard: guard.scans)
        names = [guard.name for guard in self._guards]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"guards with the same name: {', '.join(sorted(twice))}; give each its own")
        self._failures = dict.fromkeys(names, 0)
        self._fresh = {guard.name: deepcopy(guard.state_dict()) for guard in self._guards}
        self._changed = ""
        self._lost: dict[str, str] = {}

    def judge(self, view: StepView) -> Judgement:
        """What all guards say of one step. A refused step or an error seen makes guards scan now."""
        found = [*self._tell_of_changes(view), *self._tell_of_lost(view)]
        alarm = view.alarm or view.vitals.refused
        for guard in self._guards:
            answer = self._ask(guard, view if alarm == view.alarm else replace(view, alarm=alarm))
            if answer is not None:
                found.append(answer)
                alarm = alarm or verdict_on(answer) > Verdict.PROCEED
        verdict = max(map(verdict_on, found), default=Verdict.PROCEED)
        return Judgement(verdict, tuple(found))

    def scan(self, view: StepView) -> tuple[Finding, ...]:
        """What speaks against the state as it is now: critical findings only, none about the step itself.

        Asks the guards that scan, after the step was judged; the others would learn from it twice.
        """
        answers = [self._ask(guard, replace(view, alarm=True)) for guard in self._guards if guard.scans]
        return tuple(one for one in answers if one is not None and verdict_on(one) >= Verdict.ROLL_BACK)

    def rebase(self, watched: Watched) -> None:
        """The state was set from outside (start, resume, rollback): guards that compare start from here.

        One that raises is switched off until its state is loaded anew; the next step tells of it.
        """
        for guard in self._guards:
            if isinstance(guard, Rebasing):
                try:
                    guard.rebase(watched)
                except Exception as error:
                    log.exception("guard %s raised where it was to start anew", guard.name)
                    self._failures[guard.name] = _PATIENCE  # it would compare with what is no more
                    self._lost[guard.name] = f"{type(error).__name__}: {error}"

    def state_dict(self) -> dict[str, Any]:
        """The memory of each guard by its name, plain JSON."""
        return {guard.name: guard.state_dict() for guard in self._guards}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give each guard its memory back.

        A guard that the saved run did not have starts anew, and the memory of one that this run doesn't have
        is dropped: watching must not keep a good state from being loaded. Either is told with the next step.
        """
        for guard in self._guards:
            guard.load_state_dict(state.get(guard.name, self._fresh[guard.name]))
            self._failures[guard.name] = 0
        anew, dropped = self._fresh.keys() - state.keys(), state.keys() - self._fresh.keys()
        parts = [f"{', '.join(sorted(anew))} without a saved memory, so learning anew"] * bool(anew)
        parts += [f"the saved memory of {', '.join(sorted(dropped))}, whom nobody knows, dropped"] * bool(
            dropped
        )
        self._changed = "; ".join(parts)

    def _tell_of_changes(self, view: StepView) -> list[Finding]:
        """Once: which guards are others than those of the run that was loaded."""
        words, self._changed = self._changed, ""
        return [finding("panel", view, Severity.INFO, f"guards are not as saved: {words}")] if words else []

    def _tell_of_lost(self, view: StepView) -> list[Finding]:
        """Once: which guards could not start anew from the state as it was set."""
        lost, self._lost = self._lost, {}
        return [
            finding(
                "panel",
                view,
                Severity.WARNING,
                f"guard {name} raised {words}; it can't compare with this state, so it is switched off",
                raised_by=name,
            )
            for name, words in lost.items()
        ]

    def _ask(self, guard: Guard, view: StepView) -> Finding | None:
        if self._failures[guard.name] >= _PATIENCE:
            return None
        try:
            answer = guard.inspect(view)
        except Exception as error:
            return self._tell_of(guard, view, error)
        self._failures[guard.name] = 0
        return answer

    def _tell_of(self, guard: Guard, view: StepView, error: Exception) -> Finding:
        self._failures[guard.name] += 1
        times = self._failures[guard.name]
        log.exception("step %d: guard %s raised", view.vitals.step, guard.name)
        off = f"; {times} times in a row, so it is switched off" if times >= _PATIENCE else ""
        message = f"guard {guard.name} raised {type(error).__name__}: {error}{off}"
        return finding("panel", view, Severity.WARNING, message, raised_by=guard.name, times=times)
