"""Our guards, recovery and link beside a loop that a framework owns.

    companion = Companion(config, model, optimizer)
    companion.begin(total_steps=1000)
    try:
        for batch in data:
            companion.before_forward()             # once an update, before its first forward pass
            companion.note(loss)                   # each piece's loss, weighted by its share of the update
            companion.before_update()              # all gradients are there; decides
            optimizer.step()                       # writes nothing if refused; scheduler.step() may follow
            companion.after_update()               # judges; may go back; obeys the monitor
    except BaseException as error:
        companion.raised(error)                    # failed, or stopped by Ctrl-C
        raise
    companion.end("finished")

A fused optimizer refuses on the device; of any other the host reads the verdict and takes the gradients away,
so that ``optimizer.step()`` finds nothing to do. The learning rate that recovery has lowered is in the
parameter groups during ``optimizer.step()`` only, so schedulers never see it.
"""

import time
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from shared.events import RunEnded
from trainer.all_guards import all_guards
from trainer.checkpoint import Rung
from trainer.errors import RunStopped
from trainer.guards.base import Verdict, Vitals
from trainer.guards.limits import Limits
from trainer.guards.panel import Judgement
from trainer.guards.spike import Spike
from trainer.incident import Incidents
from trainer.integrations.borrowed import Borrowed
from trainer.integrations.foreign import Ending, ended_by, refuse_several_processes, reporter_of
from trainer.integrations.settings import CompanionConfig
from trainer.judging import Judging
from trainer.orders import Orders
from trainer.recovery import Recovery, Trigger
from trainer.state import TrainState
from trainer.stopped import leave_report

_LOSS = "loss"


class Companion:
    """Refuses bad updates, goes back from a corrupt state, reports, and obeys the monitor.

    Args:
        max_norm: what gradients are clipped to, unless the configuration says it.
        framework: its name and version, told to the monitor.

    Raises:
        ConfigError: several processes train together, or the folder's record can't be read.
    """

    def __init__(
        self,
        config: CompanionConfig,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        max_norm: float | None = None,
        framework: str = "",
    ) -> None:
        refuse_several_processes()
        self.config, self._framework = config, framework
        limits = Limits(next(model.parameters()).device)
        most = config.max_norm or max_norm or torch.finfo(torch.float32).max
        self._optimizer = Borrowed(_LOSS, model, optimizer, most, limits, self._count)
        self.meter = self._optimizer.meter
        spike = Spike(_LOSS, config.guards.spike, limits=limits)
        panel = all_guards(config.guards, [spike], [_LOSS])
        self.state = TrainState(model, {_LOSS: optimizer}, {_LOSS: self.meter}, panel)
        self._begun = self._noted = time.perf_counter()
        self._is_over = False
        self.stop_reason: str | None = None

    def begin(self, *, total_steps: int | None = None, step: int = 0) -> None:
        """Start to report, at ``step`` applied updates: not 0 where the framework has resumed.

        What the folder holds of steps after this one belongs to a stretch that is given up. Where it raises,
        the optimizer is as it was.
        """
        try:
            self._begin(total_steps, step)
        except BaseException:
            self._optimizer.give_back()
            raise

    def _begin(self, total_steps: int | None, step: int) -> None:
        folder = self.config.folder
        self.reporter = reporter_of(self.config, self._framework, total_steps)
        self.state.step = self.state.iteration = step
        self.meter.restore(step, step)
        self.recovery = Recovery(
            self.config.recovery,
            self.state,
            None,
            folder / "checkpoints",
            self.reporter,
            eased=[self._optimizer.eased],
        )
        self.incidents = Incidents(
            self.config.recovery.incidents, self.reporter, folder, {"run": self.config.run}
        )
        self._judging = Judging(self, self.recovery, self.reporter, self.incidents)
        self._orders = Orders(self.reporter)
        self.recovery.ring.invalidate_after(step, self.reporter.record.attempt)
        self.state.rebase()
        self.reporter.link.start()
        self.reporter.attempt(step, "resume" if step else "start")

    def before_forward(self) -> None:
        """Before the first forward pass of an update: remember the buffers that it will write."""
        self._begun = time.perf_counter()
        self._optimizer.protect()

    def note(self, loss: Tensor, share: float = 1.0) -> None:
        """A piece's loss; those of one update add up. Reads nothing from the device."""
        self._optimizer.note(loss, share)

    def before_update(self) -> None:
        """All gradients are there: decide, and let ``optimizer.step()`` do what was decided."""
        self._optimizer.decide()

    def after_update(self) -> None:
        """Judge what has arrived, keep the way back open, obey the monitor.

        Raises:
            RunStopped: the ladder of recovery has no rung left.
        """
        try:
            self._judge_arrived()
            # from the first step on there are moments, without which no state is whole
            if self.state.step and not self.recovery.has_snapshot:
                self._open_the_way_back()
            if self.recovery.has_snapshot and self.recovery.is_due(self.state.step):
                self.settle()
                self.recovery.keep()
            self.recovery.collect()
            self._orders.carry_out(self, self.reporter.link.commands())
            self._optimizer.is_judged()
        except RunStopped as stop:
            leave_report(self.incidents, self.reporter, self.state.step, str(stop))
            raise

    def end(self, status: Ending, message: str = "") -> None:
        """The training is over: keep its last state, unless it failed, and deliver what is left to tell.

        A last state that is corrupt goes back once more, and so does one amid an update; then the training is
        told as stopped: the steps that were lost are missing, and nobody makes up for them. Does nothing the
        second time. An error or Ctrl-C meanwhile rises, and is told instead.

        Raises:
            RunStopped: it is corrupt, and the ladder of recovery has no rung left. Told as failed.
        """
        if self._is_over:
            return
        self._is_over, reason = True, self.stop_reason or ""
        told = (message or reason) if status == "failed" else (reason or message)
        try:
            if status != "failed" and (lost := self._keep_the_end()):
                status, told = "stopped", "; ".join(filter(None, (told, lost)))
        except BaseException as error:
            status, why = ended_by(error)
            told = f"{why}; the last state may not have been kept"
            if isinstance(error, RunStopped):
                leave_report(self.incidents, self.reporter, self.state.step, why)
            raise
        finally:
            self._close(RunEnded(step=self.state.step, status=status, message=told))

    def raised(self, error: BaseException) -> None:
        """The training ends by this error; where that is Ctrl-C, somebody has ended it on purpose.

        Raises:
            RunStopped: see ``end``, whose work Ctrl-C leaves to do.
        """
        self.end(*ended_by(error))

    def settle(self) -> None:
        """Wait until every update has been judged."""
        self._judge_arrived(wait=True)

    def is_sound(self) -> bool:
        """Whether the state passes a scan now; where it does not, the run goes back."""
        return self._judging.is_sound()

    def save_checkpoint(self) -> None:
        """Hand a checkpoint of the present state to the writer."""
        self.recovery.save()

    def stop(self, reason: str) -> None:
        """Ask the framework to end after this update; whoever calls us looks at ``stop_reason``."""
        self.stop_reason = reason

    def go_back(
        self,
        reason: str,
        trigger: Trigger,
        *,
        command: str | None = None,
        at_most: int | None = None,
        rung: Rung | None = None,
    ) -> None:
        """Restore an earlier state; the framework's data and schedule go on from where they are.

        Raises:
            RunStopped, NoValidCheckpoint: see ``Recovery.go_back``.
        """
        if trigger == "guard" and not self.recovery.has_snapshot:
            raise RunStopped(f"corrupt before there was anything to go back to: {reason}")
        try:
            rollback = self.recovery.go_back(
                reason,
                trigger,
                command=command,
                at_most=at_most,
                rung=rung,
                incident=self.incidents.current,
            )
            self._optimizer.went_back()
            self.incidents.went_back(rollback)
        finally:
            self.state.rebase()

    def _keep_the_end(self) -> str:
        """Keep the last state, or the one before it that is sound; in words what that cost, if anything."""
        attempt, why = self.reporter.record.attempt, "the end was corrupt"
        self._optimizer.undo_forward()
        if self._optimizer.is_amid_update:
            why = "it ended amid an update"
            self._leave_update(why)
        self.settle()
        if self.recovery.has_snapshot:
            self.is_sound()
            self.recovery.keep_last()
            self.incidents.end("healed")
        if self.reporter.record.attempt == attempt:
            return ""
        back = self.reporter.record.rollbacks[-1]
        return f"{why}, so it went back from step {back.from_step} to {back.to_step}"

    def _leave_update(self, why: str) -> None:
        """Nobody knows what of it is written, so go back to the newest state that was kept, if any is yet."""
        if self.recovery.has_snapshot:
            self.go_back(why, "guard", rung=self.recovery.newest_kept())

    def _close(self, last_word: RunEnded) -> None:
        """Each of these, whatever becomes of the others."""
        with ExitStack() as closing:
            closing.callback(self.reporter.link.close)
            closing.callback(self.reporter.ended, last_word)
            closing.callback(self._optimizer.give_back)
            self.recovery.close()

    def _count(self) -> None:
        self.state.iteration += 1

    def _judge_arrived(self, wait: bool = False) -> None:
        attempt = self.reporter.record.attempt
        for vitals in self.meter.arrived(wait=wait):
            if self.reporter.record.attempt != attempt:
                return  # it has gone back: the others are of the stretch that was given up
            self._judge(vitals)

    def _judge(self, vitals: Vitals) -> None:
        judgement, now = self._judging.ask([vitals]), time.perf_counter()
        seconds, fetch_seconds = now - self._noted, max(self._begun - self._noted, 0.0)
        self._judging.tell(judgement, [vitals], seconds=seconds, fetch_seconds=fetch_seconds)
        if not vitals.refused:
            self._noted = now
        self._follow_incidents(judgement, vitals)
        self._judging.follow(judgement, [vitals])

    def _follow_incidents(self, judgement: Judgement, vitals: Vitals) -> None:
        """Before anything follows from a step: whether it is part of a fault."""
        corrupt, gravest = judgement.verdict >= Verdict.ROLL_BACK, judgement.gravest
        if corrupt or vitals.refused:
            self.incidents.alarm(
                vitals.step,
                gravest.guard if gravest else "meter",
                gravest.message if gravest else f"refused ({vitals.reason})",
                kind="weights" if corrupt else "unknown",
                onset=self.recovery.kept_at if corrupt and not vitals.refused else None,
                reading=gravest.reading if gravest else None,
            )
        elif judgement.verdict is Verdict.PROCEED:
            self.incidents.healthy([vitals], time.perf_counter() - self._begun)

    def _open_the_way_back(self) -> None:
        """The first snapshot: of a state that was judged, and that nothing speaks against."""
        if self.is_sound():
            self.recovery.begin()
