"""The loop: six named phases a step, each with one job, around any model that has a ``training_step``."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from shared.events import RunEnded
from trainer.agreement import Agreement
from trainer.checkpoint import Rung
from trainer.errors import RunStopped
from trainer.guards.at_rest import AtRest
from trainer.guards.base import StepLosses, Vitals
from trainer.guards.randomness import Randomness
from trainer.guards.streams import Streams
from trainer.incident import Incidents
from trainer.judging import Judging
from trainer.news import remarks
from trainer.objective import Objective
from trainer.orders import Orders
from trainer.passes import Passes, Phase
from trainer.precision import Precision
from trainer.probe import Trainee
from trainer.recovery import Recovery, Trigger
from trainer.refusals import Refusals
from trainer.reporting import Reporter
from trainer.state import TrainState
from trainer.stopped import leave_report
from trainer.taken import Batch, Taken
from trainer.under_way import UnderWay
from trainer.watchdog import Hung

Observer = Callable[[Phase, "Loop"], None]
"""Called at the start of every phase: a progress bar looks here, and a drill breaks things here."""


class Loop:
    """Trains the state's model for ``total_steps`` applied updates.

    The device refuses a bad update in the step itself; the host judges the numbers when they arrive, a step
    or two later on a GPU, at once on a CPU. ``batch``, ``losses`` and ``objective`` are of the step at hand
    (``Passes``), ``last`` is what was judged last.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        state: TrainState,
        recovery: Recovery,
        reporter: Reporter,
        incidents: Incidents,
        *,
        total_steps: int,
        device: torch.device,
        at_rest: AtRest,
        streams: Streams,
        observers: Sequence[Observer] = (),
        precision: Precision = "fp32",
        micro_batches: int = 1,
    ) -> None:
        assert isinstance(state.model, Trainee)
        self.model, self.objectives, self.state = state.model, objectives, state
        self.recovery, self.reporter = recovery, reporter
        self.orders = Orders(reporter)
        self.refusals = Refusals(recovery, reporter, incidents, replay=recovery.config.replay)
        self.total_steps, self.device = total_steps, device
        self.observers = list(observers)
        self._at_rest, self._streams = at_rest, streams
        self.batch: Batch = {}
        self.last: Sequence[Vitals] = ()
        self._under_way = UnderWay([one.meter for one in objectives])
        self._judging = Judging(self, recovery, reporter, incidents)
        self._agreement = Agreement(state, recovery, reporter)
        self.passes = Passes(
            state.model,
            objectives,
            at_rest,
            device=device,
            precision=precision,
            micro_batches=micro_batches,
            enter=self._enter,
            hear=self._agreement.hear,
        )

    def run(self) -> Literal["finished", "stopped"]:
        """Train to the end, or until somebody asks to stop; the last state is a checkpoint either way.

        Raises:
            RunStopped: the ladder of recovery has no rung left.
        """
        self.begin()
        try:
            while not self._is_over():
                self._step_or_go_back()
            self.settle()
            self.recovery.keep_last()
            self.refusals.incidents.end("healed")
        except RunStopped as stop:
            leave_report(self.refusals.incidents, self.reporter, self.state.step, str(stop))
            raise
        finally:
            self.recovery.close()
        why = self._agreement.stop_reason
        status: Literal["finished", "stopped"] = "finished" if why is None else "stopped"
        self.reporter.ended(RunEnded(step=self.state.step, status=status, message=why or ""))
        return status

    def begin(self) -> None:
        """Get ready for the first step from the state as it is."""
        self.state.model.train()
        self.passes.begin()
        self.state.rebase()
        self.recovery.begin()

    @property
    def objective(self) -> Objective:
        """The one whose turn it is in the step at hand."""
        return self.passes.objective

    @property
    def losses(self) -> StepLosses | None:
        """Those of the last pass; what an observer puts there is what backward begins with."""
        return self.passes.losses

    @losses.setter
    def losses(self, losses: StepLosses) -> None:
        self.passes.losses = losses

    @property
    def number(self) -> int:
        """Updates before the one at hand, if none of those under way was refused."""
        return self.state.step + len(self._under_way)

    def stop(self, reason: str) -> None:
        """End at the next step boundary, with a checkpoint; safe to call from a signal handler."""
        self._agreement.stop(reason)

    def step(self) -> None:
        """One batch through the six phases."""
        self._enter(Phase.FETCH)
        self._carry_out(self.fetch())
        self._streams.drawn(Randomness.now(self.device))
        self._enter(Phase.REPORT)
        self.report()

    def _carry_out(self, taken: Taken) -> None:
        """All phases of a batch between its fetch and its report."""
        self.batch = taken.batch
        refused = self.passes.carry_out(taken.batch, self.number)
        # a refusal of a later objective alone takes back nothing of the update that is counted
        self.state.ema.update(
            range(self.state.step, self.number + 1), self.objectives[0].meter.applied - 1, refused
        )
        self._at_rest.remember()
        self._under_way.add(taken)

    def replay(self, taken: Taken) -> Taken:
        """A refused step once more, with the same batch and the same random states; applied if it is clean.

        At a step boundary: everything else has been judged. Random states go on from where they were.
        """
        here = Randomness.now(self.device)
        iteration = taken.iteration
        for objective in self.objectives:
            objective.meter.iteration = iteration
        again = replace(taken, vitals=[], is_replay=True)
        taken.random.set()
        self._carry_out(again)
        here.set()
        for objective in self.objectives:
            objective.meter.iteration = self.state.iteration
        self.hear_all()
        self._enter(Phase.REPORT)  # what follows keeps the way back open, and must not be cut short
        return again

    def _step_or_go_back(self) -> None:
        try:
            self.step()
        except Hung as hung:  # wherever it stood: all that a step changes comes back
            self.state.loader.close()
            self.refusals.incidents.alarm(self.state.step, "watchdog", str(hung), kind="hang")
            self.go_back(str(hung), "guard")

    def fetch(self) -> Taken:
        """Take the next batch to the device."""
        begun = time.perf_counter()
        batch = self.state.loader.next_batch()
        self._agreement.hear(remarks(self.number, self.state.loader.take_remarks()))
        self.batch = {
            key: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
        self._agreement.tell_left_out(self.number)
        seconds = time.perf_counter() - begun
        random = Randomness.now(self.device)
        self._streams.note(random, self.state.iteration)
        ids = tuple(batch["ids"])
        taken = Taken(self.state.iteration, ids, begun, seconds, self.batch, random)
        self.state.iteration += 1
        return taken

    def report(self) -> None:
        """Judge what has arrived on the host, keep the way back open, obey the monitor."""
        self._judge_arrived(wait=False)
        self.refusals.take_up(self)
        if self.recovery.is_due(self.state.step):
            self.settle()
            self.recovery.keep()
        self.orders.carry_out(self, self._agreement.reach(self.number))

    def go_back(
        self,
        reason: str,
        trigger: Trigger,
        *,
        command: str | None = None,
        at_most: int | None = None,
        rung: Rung | None = None,
        forget: str | None = None,
    ) -> None:
        """Restore an earlier state and begin a new attempt there; what is under way is lost with the stretch.

        With ``forget`` the moments of that module start anew, before the guards look at where they are.

        Raises:
            RunStopped, NoValidCheckpoint: see ``Recovery.go_back``.
        """
        self._under_way.forget()
        self.refusals.forget()
        incidents = self.refusals.incidents
        try:
            rollback = self.recovery.go_back(
                reason,
                trigger,
                command=command,
                at_most=at_most,
                rung=rung,
                incident=incidents.current,
                forget=forget,
            )
            incidents.went_back(rollback)
        finally:  # a command that finds nothing to go back to has taken the state away and put it back
            self.state.rebase()

    def save_checkpoint(self) -> None:
        """Hand a checkpoint of this step boundary, where everything has been judged, to the writer."""
        self.recovery.save()

    def is_sound(self) -> bool:
        """Whether the state passes a scan now; where it does not, the run goes back: see ``Judging``."""
        return self._judging.is_sound()

    def _enter(self, phase: Phase) -> None:
        for observer in self.observers:
            observer(phase, self)

    def _is_over(self) -> bool:
        """Whether to end, in a sound state. Waits only where what is under way may hold the last update."""
        if self.number >= self.total_steps:
            self.settle()
        is_asked_for = self.state.step >= self.total_steps or self._agreement.stop_reason is not None
        return is_asked_for and self.is_sound()

    def settle(self) -> None:
        """Wait until everything under way has been judged, and what was refused replayed."""
        self.hear_all()
        self.refusals.take_up(self)

    def hear_all(self) -> None:
        """Wait until everything under way has been judged."""
        self._judge_arrived(wait=True)

    def _judge_arrived(self, wait: bool) -> None:
        for taken in self._under_way.arrived(wait):
            self._judge(taken)

    def _judge(self, taken: Taken) -> None:
        """What the guards say about one step, and what follows."""
        self.last = taken.vitals
        if taken.is_replay and taken.vitals[0].refused:
            return  # told already when it was refused first
        if self.state.ranks.are_many and not taken.is_replay and taken.is_suspect:
            everyone = self.state.ranks.tell_all(taken.sample_ids)
            taken.sample_ids = tuple(name for ids in everyone for name in ids)
        judgement = self._judging.ask(taken.vitals, taken.sample_ids)
        seconds = time.perf_counter() - taken.begun
        self._judging.tell(
            judgement, taken.vitals, taken.sample_ids, seconds=seconds, fetch_seconds=taken.fetch_seconds
        )
        self.refusals.judged(self, taken, judgement, seconds)
        self._judging.follow(judgement, taken.vitals)
