"""The way back: when to keep a snapshot or a checkpoint, and which of them to return to."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from shared.events import Finding, Rollback, Severity
from trainer.checkpoint import (
    Easing,
    Ladder,
    LadderConfig,
    LoadCheckpoint,
    NoValidCheckpoint,
    Record,
    RestoreSnapshot,
    RingConfig,
    Rung,
    SnapshotRing,
    Stop,
)
from trainer.common_ring import ring_and_writer
from trainer.errors import RunStopped
from trainer.incident import IncidentConfig
from trainer.probe import Probe
from trainer.remedies import Remedies
from trainer.reporting import Reporter
from trainer.restoring import Restoring
from trainer.saves import Saves
from trainer.section import Section
from trainer.settings import changes
from trainer.state import TrainState

Trigger = Literal["guard", "command"]


class RecoveryConfig(Section):
    """How often the way back is kept open, and how far it goes."""

    snapshot_every: int = Field(50, ge=1, description="Steps between snapshots in host memory.")
    checkpoint_every: int = Field(1_000, ge=1, description="Steps between checkpoints on disk.")
    slow_after_s: float = Field(
        30.0, gt=0, description="A save that takes longer is told of: the disk is slow. Training goes on."
    )
    probe_tolerance: float = Field(
        1e-3,
        gt=0,
        description="Relative difference of the probe loss after loading that is still the same state.",
    )
    ring: RingConfig = RingConfig()
    ladder: LadderConfig = LadderConfig()
    incidents: IncidentConfig = IncidentConfig()
    replay: bool = Field(True, description="Replay a refused step once, and find out who is to blame.")
    returns_over: int = Field(
        500, ge=5, description="Steps over which a lowered rate or clipping norm comes back, in five stages."
    )


class Recovery:
    """Keeps snapshots and checkpoints of ``state``; restores one when a guard or a person says so."""

    def __init__(
        self,
        config: RecoveryConfig,
        state: TrainState,
        probe: Probe | None,
        folder: Path,
        reporter: Reporter,
        *,
        settings: Mapping[str, Any] | None = None,
        eased: Sequence[Tensor] = (),
    ) -> None:
        self.config, self._state, self._probe, self._reporter = config, state, probe, reporter
        self._settings = dict(settings or {})
        self._changed_settings: list[str] = []
        self._protect_at: int | None = None
        changed: deque[Record] = deque()
        self.ring, self._writer = ring_and_writer(folder, config.ring, changed.append, state.ranks)
        self._restoring = Restoring(self.ring, state, probe, config.probe_tolerance)
        self._saves = Saves(self._writer, changed, reporter, config.slow_after_s)
        self._snapshots = SnapshotRing()
        self._ladder = Ladder(config.ladder)
        if reporter.record.ladder:
            self._ladder.load_state_dict(reporter.record.ladder)
        self.remedies = Remedies(state, reporter, eased, config.returns_over)
        self.kept_at, self.save_due_at = state.step, state.step + config.checkpoint_every
        self.saved_at: int | None = None
        """Step of the checkpoint that was handed over last, by this process."""

    def resume(self) -> str | None:
        """Take over the newest checkpoint that passes every check; its name, or None if there is none at all.

        Raises:
            NoValidCheckpoint: there are checkpoints, and none of them can be trusted.
        """
        records = self.ring.records()
        if not records:
            return None
        # the run's record may be lost, and no attempt's number may come twice: checkpoints are named by it
        seen = self._reporter.record.attempt
        self._reporter.record.attempt = max(seen, *(record.attempt for record in records))
        loaded = self._restoring.newest(good_first=False)
        self.ring.invalidate_after(self._state.step, self._reporter.record.attempt)
        if "settings" in loaded.stored.facts:
            self._changed_settings = changes(loaded.stored.facts["settings"], self._settings)
        return loaded.record.name

    def begin(self) -> None:
        """The first way back: a snapshot of where the attempt starts."""
        self.save_due_at = self._state.step + self.config.checkpoint_every
        self.remedies.follow()
        self._take_snapshot()
        if self._changed_settings:
            message = "resumed with other settings than before: " + "; ".join(self._changed_settings)
            step, severity = self._state.step, Severity.WARNING
            self._reporter.finding(Finding(step=step, guard="settings", severity=severity, message=message))

    def is_due(self, step: int) -> bool:
        """Whether a snapshot or a checkpoint should be kept at ``step``. Costs two comparisons."""
        if self._protect_at is not None and step >= self._protect_at:
            return True
        return step - self.kept_at >= self.config.snapshot_every or self._checkpoint_is_due(step)

    def keep(self) -> None:
        """Take the snapshot and hand over the checkpoint that are due; nothing unjudged is under way."""
        if self._checkpoint_is_due(self._state.step):
            self.save()
        self._take_snapshot()

    def save(self) -> None:
        """Hand a checkpoint of this moment to the writer: costs two probes and a copy, not the disk."""
        self.save_due_at = self._state.step + self.config.checkpoint_every
        self._saves.hand_over(self._state, self._probe, self._settings)
        self.saved_at = self._state.step

    def judged(self, refused: bool, is_healthy: bool) -> None:
        """Hear how a step was; ``refused`` if any of its objectives was.

        Raises:
            RunStopped: too many refused in a row.
        """
        step = self._state.step
        self._writer.healthy(step, open_findings=refused or not is_healthy)
        if refused:
            self._stop_or(self._ladder.refused(step))
        else:
            self._ladder.applied()
        self.remedies.follow()

    def unexplained(self, step: int, batch: int) -> Rung | None:
        """Hear of a refused step that stays bad: where to go back to, or None to go on.

        Raises:
            RunStopped: the ladder has no rung left.
        """
        rung = self._ladder.unexplained(
            step, batch, snapshots=self._snapshots.steps(), checkpoints=self.ring.steps()
        )
        self._stop_or(rung)
        return rung if isinstance(rung, RestoreSnapshot | LoadCheckpoint) else None

    def earlier_weights(self) -> Mapping[str, Tensor] | None:
        """The model of the newest snapshot: a state that was scanned before it was kept."""
        snapshot = self._snapshots.newest()
        return None if snapshot is None else snapshot.parts["model"]

    @property
    def has_snapshot(self) -> bool:
        """Whether this process has kept a state to go back to. Costs a look at each slot."""
        return bool(self._snapshots.steps())

    def newest_kept(self) -> RestoreSnapshot | LoadCheckpoint:
        """The way to the newer of the newest snapshot, of which there is one, and the newest checkpoint."""
        self._writer.drain()
        kept, saved = self._snapshots.steps()[0], max(self.ring.steps(), default=0)
        return RestoreSnapshot(kept) if kept >= saved else LoadCheckpoint(saved + 1, good_first=False)

    def ease(self, step: int, reason: str) -> None:
        """Divergence is predicted: lower the rate for a while and keep the present state. Never goes back."""
        if self.remedies.ease(step, Easing(self.config.ladder.lower_lr), reason):
            self._protect_at = step + 2  # the judgement of the next step scans the state before it is kept

    def collect(self) -> None:
        """Report what the writer's thread has done since the last call."""
        if self._saves.tell(self._state.step):
            # tried again after a while, not in each step: staging costs a copy of everything
            soon = min(self.config.snapshot_every, self.config.checkpoint_every)
            self.save_due_at = self._state.step + soon

    def go_back(
        self,
        reason: str,
        trigger: Trigger,
        *,
        command: str | None = None,
        at_most: int | None = None,
        rung: Rung | None = None,
        incident: str | None = None,
        forget: str | None = None,
    ) -> Rollback:
        """Restore an earlier state and begin a new attempt there.

        A guard's call climbs the ladder, or to the ``rung`` that it was given. A command goes to the newest
        good checkpoint, at step ``at_most`` or before. The moments of the module ``forget`` start anew there,
        before that state is kept.

        Raises:
            RunStopped: the ladder has no rung left.
            NoValidCheckpoint: a command, and nothing to go back to; the state is as it was.
            OSError: a command, and the process may not read; the state is as it was.
        """
        begun, from_step, attempt = time.perf_counter(), self._state.step, self._reporter.record.attempt
        self._writer.drain()
        if trigger == "guard":
            rung = rung or self._next_rung(from_step)
            checkpoint = self._climb(from_step, rung)
        else:
            before_step = None if at_most is None else at_most + 1
            checkpoint = self._restoring.newest_or_stay(before_step=before_step).record.name
        to_step = self._state.step
        self._snapshots.drop_after(to_step)
        self.ring.invalidate_after(to_step, attempt)
        rollback = Rollback(
            step=from_step,
            from_step=from_step,
            to_step=to_step,
            source="snapshot" if checkpoint is None else "checkpoint",
            checkpoint=checkpoint,
            reason=reason,
            trigger=trigger,
            command=command,
            seconds=time.perf_counter() - begun,
        )
        self._reporter.rollback(rollback)
        if isinstance(rung, RestoreSnapshot | LoadCheckpoint):
            self.remedies.go_along_with(rung, reason, incident)
        if forget is not None:
            self._state.reset_moments(forget)
        self.remedies.follow()
        # where nothing on disk is left to go back to, the next step makes it
        self.save_due_at = to_step + (self.config.checkpoint_every if self.ring.steps() else 1)
        self._take_snapshot()
        return rollback

    def keep_last(self) -> None:
        """A checkpoint of the state in which the run ends, unless there is one."""
        self._writer.drain()
        self.collect()
        if self._state.step not in self.ring.steps():
            self.save()

    def close(self) -> None:
        """Finish everything that was handed to the writer, and report it."""
        self._writer.drain()
        self._writer.close()
        self.collect()

    def _checkpoint_is_due(self, step: int) -> bool:
        return step >= self.save_due_at

    def _take_snapshot(self) -> None:
        self.kept_at = self._state.step
        self._snapshots.take(
            step=self._state.step,
            attempt=self._reporter.record.attempt,
            parts=self._state.parts(),
            facts=self._state.facts(),
        )
        if self._protect_at is not None and self._state.step >= self._protect_at:
            self._protect_at = None
            self._snapshots.protect(self._state.step, self._state.step + self.config.returns_over)

    def _next_rung(self, step: int) -> Rung:
        rung = self._ladder.corrupt(step, snapshots=self._snapshots.steps(), checkpoints=self.ring.steps())
        self._stop_or(rung)
        return rung

    def _climb(self, step: int, rung: Rung) -> str | None:
        """Restore what the rung says: a checkpoint's name, or None for a snapshot."""
        if isinstance(rung, RestoreSnapshot):
            snapshot = self._snapshots.newest(before_step=rung.step + 1)
            assert snapshot is not None, "the ladder was offered what the ring holds"
            self._state.restore(snapshot.parts, snapshot.facts)
            return None
        assert isinstance(rung, LoadCheckpoint)
        try:
            loaded = self._restoring.newest(before_step=rung.before_step, good_first=rung.good_first)
            return loaded.record.name
        except NoValidCheckpoint as error:
            raise RunStopped(f"step {step}: {error}") from error

    def _stop_or(self, rung: object) -> None:
        self._reporter.record.ladder = self._ladder.state_dict()
        if isinstance(rung, Stop):
            raise RunStopped(rung.reason)
