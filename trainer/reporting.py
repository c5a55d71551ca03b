"""Tells what happens to a run: to the monitor, to its record on disk, and to people through the log."""

import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Literal

from shared.events import (
    AttemptStarted,
    Change,
    CheckpointChanged,
    CommandUpdate,
    Event,
    Finding,
    Incident,
    Picture,
    Rollback,
    RunEnded,
    Severity,
    StepSkipped,
)
from trainer.guards.base import Vitals
from trainer.link.client import Link
from trainer.record import RunRecord

log = logging.getLogger(__name__)

_LEVELS = {
    Severity.INFO: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.ERROR: logging.ERROR,
    Severity.CRITICAL: logging.CRITICAL,
}
_KEPT = 1_000
_RECENT = 50


class Reporter:
    """The one place through which events leave the trainer.

    Without a ``path`` this is a rank that keeps the same record in memory, and tells nobody.
    """

    def __init__(self, run: str, link: Link, record: RunRecord, path: Path | None) -> None:
        self.run, self.link, self.record, self._path = run, link, record, path
        self._recent_losses: deque[tuple[int, float]] = deque(maxlen=_RECENT)
        self._left_out: set[str] = set()
        self._saving = Lock()  # the watchdog tells of a hang while the loop hangs, from a thread of its own

    @property
    def is_heard(self) -> bool:
        """Whether this is the rank that tells, and writes."""
        return self._path is not None

    @property
    def recent_loss(self) -> float:
        """Mean loss of the last applied steps, since a single one says more about its diffusion times.

        Without those that a rollback threw away; NaN while this process has applied none.
        """
        losses = [loss for _, loss in self._recent_losses]
        return sum(losses) / len(losses) if losses else math.nan

    def attempt(
        self, step: int, reason: Literal["start", "resume", "rollback"], checkpoint: str | None = None
    ) -> None:
        """A new attempt begins at ``step``."""
        self.record.attempt += 1
        self.record.status = "running"
        self._tell(
            AttemptStarted(step=step, attempt=self.record.attempt, reason=reason, checkpoint=checkpoint)
        )

    def applied(self, vitals: Sequence[Vitals], seconds: float, fetch_seconds: float) -> None:
        """An update was applied: its numbers, one row of the series. Costs one dict and one append."""
        values = {"step_seconds": seconds, "fetch_seconds": fetch_seconds}
        for index, one in enumerate(vitals):
            prefix = f"{one.objective}/" if index else ""
            values[f"{prefix}loss"] = one.loss
            values[f"{prefix}grad_norm"] = one.grad_norm
            values[f"{prefix}lr"] = one.lr
            if one.clip > 1:
                values[f"{prefix}clip"] = one.clip
            if one.loss_scale != 1:
                values[f"{prefix}loss_scale"] = one.loss_scale
            values |= {f"{prefix}loss/{name}": part for name, part in one.parts.items()}
            values |= {f"{prefix}grad_norm/{name}": norm for name, norm in one.module_norms.items()}
        self.link.record_step(self.record.attempt, vitals[0].step, time.time(), values)
        self._recent_losses.append((vitals[0].step, vitals[0].loss))

    def skipped(self, event: StepSkipped) -> None:
        """A step was refused on the device."""
        log.warning("run %s step %d: refused (%s)", self.run, event.step, event.reason)
        self.record.skipped_steps += 1
        self.record.skips.append(event)
        del self.record.skips[:-_KEPT]
        self._tell(event)

    def finding(self, finding: Finding) -> None:
        """A guard saw something."""
        log.log(_LEVELS[finding.severity], "run %s step %d: %s", self.run, finding.step, finding.message)
        self.record.findings.append(finding)
        del self.record.findings[:-_KEPT]
        self._tell(finding)

    def shows_no_more(self, step: int, what: str, error: Exception) -> None:
        """What is for show has failed, and is left out from now on: no reason to end a run."""
        log.warning("run %s step %d: %s raised", self.run, step, what, exc_info=error)
        words = f"no {what} from now on: {type(error).__name__}: {error}"
        self.finding(Finding(step=step, guard="pictures", severity=Severity.INFO, message=words))

    def left_out(self, refused: Sequence[tuple[str, str]], step: int) -> None:
        """Samples and why they were left out of their batches; each is a finding once."""
        for name, reason in refused:
            if name in self._left_out:
                continue
            self._left_out.add(name)
            self.finding(
                Finding(
                    step=step,
                    guard="data",
                    severity=Severity.WARNING,
                    message=f"sample {name} was left out of its batch: {reason}",
                    reading={"sample": name, "reason": reason},
                )
            )

    def rollback(self, event: Rollback) -> None:
        """The run went back; the next attempt begins where it arrived."""
        log.warning(
            "run %s step %d: back to step %d from a %s in %.2f s (%s)",
            self.run,
            event.from_step,
            event.to_step,
            event.source,
            event.seconds,
            event.reason,
        )
        self.record.rollbacks.append(event)
        kept = [one for one in self._recent_losses if one[0] < event.to_step]
        self._recent_losses = deque(kept, maxlen=_RECENT)
        self._tell(event)
        self.attempt(event.to_step, "rollback", event.checkpoint)

    def change(self, event: Change) -> None:
        """Recovery set something aside or turned something down, or undid it."""
        values = f"{event.previous} -> {event.value}" if event.previous != "" else event.value
        log.warning("run %s step %d: %s %s (%s)", self.run, event.step, event.what, values, event.reason)
        self.record.changes.append(event)
        del self.record.changes[:-_KEPT]
        self._tell(event)

    def incident(self, event: Incident) -> None:
        """An incident began, or more is known about it: the last telling counts."""
        log.warning(
            "run %s step %d: incident %s (%s, %s) %s",
            self.run,
            event.step,
            event.incident,
            event.kind,
            event.outcome,
            event.action or event.message,
        )
        known = [one for one in self.record.incidents if one.incident != event.incident]
        self.record.incidents = sorted([*known, event], key=_number)[-_KEPT:]
        self._tell(event)

    def checkpoint(self, event: CheckpointChanged) -> None:
        """A checkpoint changed its state."""
        detail = f": {event.failed_check}" if event.failed_check else ""
        log.info("run %s: %s is %s%s", self.run, event.checkpoint, event.state, detail)
        self._tell(event)

    def picture(self, event: Picture) -> None:
        """Something to look at. It is no part of the record, and nothing waits for it."""
        if self.is_heard:
            self.link.record_event(self.record.attempt, event, urgent=False)

    def command(self, event: CommandUpdate) -> None:
        """How far a command has come."""
        log.info(
            "run %s step %d: command %s %s %s",
            self.run,
            event.step,
            event.command,
            event.state,
            event.message,
        )
        self._tell(event)

    def ended(self, event: RunEnded) -> None:
        """The last word."""
        log.info("run %s: %s at step %d %s", self.run, event.status, event.step, event.message)
        self.record.status = event.status
        self._tell(event)

    def _tell(self, event: Event) -> None:
        if self._path is None:
            return
        try:
            with self._saving:
                self.record.save(self._path)
        except OSError as error:  # a full disk must not end the training; the next event tries again
            log.warning("run %s step %d: cannot write its record: %s", self.run, event.step, error)
        self.link.record_event(self.record.attempt, event)


def _number(event: Incident) -> int:
    """Incidents are named ``step-<step>-<number>``."""
    return int(event.incident.rpartition("-")[2])
