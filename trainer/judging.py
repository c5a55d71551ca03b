"""What the guards say of a step and of the state, and what follows: in our own loop and beside another's."""

from collections.abc import Sequence
from typing import Protocol

from shared.events import Finding, StepSkipped
from trainer.errors import RunStopped
from trainer.guards.base import StepView, Verdict, Vitals, verdict_on
from trainer.guards.panel import Judgement
from trainer.incident import Incidents
from trainer.news import merged
from trainer.recovery import Recovery, Trigger
from trainer.reporting import Reporter
from trainer.state import TrainState


class Judged(Protocol):
    """A training whose steps are judged."""

    @property
    def state(self) -> TrainState: ...

    def settle(self) -> None: ...
    def go_back(self, reason: str, trigger: Trigger) -> None: ...


class Judging:
    """For each step: ``ask`` the guards, ``tell`` what was measured, and do what has to ``follow``.

    Where ranks are many each asks its own guards, and all of them hear what any of these found.
    """

    def __init__(
        self,
        training: Judged,
        recovery: Recovery,
        reporter: Reporter,
        incidents: Incidents,
    ) -> None:
        self._training = training
        self._recovery, self._reporter, self._incidents = recovery, reporter, incidents
        self._last_view: StepView | None = None

    def ask(self, measured: Sequence[Vitals], sample_ids: tuple[str, ...] = ()) -> Judgement:
        """What the guards say of one step, objective by objective."""
        state = self._training.state
        # a state is scanned before it is kept: what a snapshot holds must be worth returning to
        alarm = self._recovery.is_due(state.step + 1)
        findings: list[Finding] = []
        is_corrupt = False
        for vitals in measured:
            view = StepView(vitals, sample_ids, state.watched, alarm=alarm)
            judgement = state.panel.judge(view)  # of each objective: ranks that compare must all do so
            if is_corrupt:
                continue  # the others' scans would only say so again
            self._last_view = view
            findings.extend(judgement.findings)
            is_corrupt = judgement.verdict >= Verdict.ROLL_BACK
        everyone = self._of_all(findings)
        return Judgement(max(map(verdict_on, everyone), default=Verdict.PROCEED), tuple(everyone))

    def tell(
        self,
        judgement: Judgement,
        measured: Sequence[Vitals],
        sample_ids: tuple[str, ...] = (),
        *,
        seconds: float,
        fetch_seconds: float,
    ) -> None:
        """Report the findings and the step, and count it if it was applied."""
        for finding in judgement.findings:
            self._reporter.finding(finding)
        if measured[0].refused:
            self._reporter.skipped(_skip(measured[0], sample_ids))
            return
        self._reporter.applied(measured, seconds, fetch_seconds)
        self._training.state.step += 1

    def follow(self, judgement: Judgement, measured: Sequence[Vitals]) -> None:
        """Go back, lower the rate, or let the ladder know how the step was.

        Raises:
            RunStopped: no earlier state would help, or the ladder of recovery has no rung left.
        """
        verdict, gravest = judgement.verdict, judgement.gravest
        for one in judgement.findings:
            if one.reading.get("predicts") == "divergence":
                self._recovery.ease(one.step, one.message)
        if gravest is not None and verdict is Verdict.STOP:
            raise RunStopped(gravest.message)
        if gravest is not None and verdict is Verdict.ROLL_BACK:
            self._training.go_back(gravest.message, "guard")
            return
        # a spike that is no error is a new level of loss, accepted: a row of refusals ends there
        is_accepted = measured[0].reason == "spike" and verdict is Verdict.PROCEED
        at_fault = any(one.is_at_fault for one in measured)
        if (
            at_fault or not measured[0].refused
        ):  # one that only the loss scale skipped says nothing of the run
            self._recovery.judged(at_fault and not is_accepted, verdict is Verdict.PROCEED)

    def is_sound(self) -> bool:
        """Whether the state, all of it judged, passes a scan now; where it does not, the run goes back.

        For what is kept outside of the schedule: the steps since the last scan may have left anything.

        Raises:
            RunStopped: see ``Recovery.go_back``.
        """
        self._training.settle()
        state = self._training.state
        problems = self._of_all([] if self._last_view is None else state.panel.scan(self._last_view))
        for problem in problems:
            self._reporter.finding(problem)
        if problems:
            first, onset = problems[0], self._recovery.kept_at
            self._incidents.alarm(
                state.step, first.guard, first.message, kind="weights", onset=onset, reading=first.reading
            )
            self._training.go_back(first.message, "guard")
        return not problems

    def _of_all(self, own: Sequence[Finding]) -> list[Finding]:
        """What one rank alone sees in its state concerns all of them."""
        return merged(self._training.state.ranks.pool(own))


def _skip(vitals: Vitals, sample_ids: tuple[str, ...]) -> StepSkipped:
    return StepSkipped(
        step=vitals.step,
        reason=vitals.reason or "spike",
        loss=vitals.loss,
        grad_norm=vitals.grad_norm,
        sample_ids=sample_ids,
    )
