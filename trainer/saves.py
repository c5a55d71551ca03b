"""Checkpoints on their way to the disk: handed over, and told what became of them."""

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from shared.events import CheckpointChanged, CheckpointState, Finding, Severity
from trainer.checkpoint import Record, stage
from trainer.common_ring import Writer
from trainer.probe import Probe
from trainer.reporting import Reporter
from trainer.state import TrainState


class Saves:
    """Hands checkpoints to the writer's thread and tells what it has done, from the loop's thread.

    Args:
        changed: where the thread puts each checkpoint that has changed its state.
        slow_after_s: a save that takes longer is told of.
    """

    def __init__(
        self, writer: Writer, changed: deque[Record], reporter: Reporter, slow_after_s: float
    ) -> None:
        self._writer, self._changed, self._reporter = writer, changed, reporter
        self._slow_after_s = slow_after_s
        self._told_slow: tuple[str, float] | None = None

    def hand_over(self, state: TrainState, probe: Probe | None, settings: Mapping[str, Any]) -> None:
        """A checkpoint of this moment: costs two probes and a copy, not the disk."""
        # a restart goes on from here, so the steps up to here must not be lost with this process
        self._reporter.link.hurry()
        losses = probe.measure(state.step) if probe else {}
        self._writer.submit(
            stage(state.parts()),
            {**state.facts(), "probe": losses, "settings": settings},
            step=state.step,
            attempt=self._reporter.record.attempt,
            probe_loss=losses.get("live"),
        )

    def tell(self, step: int) -> bool:
        """Tell all that is new; answers whether a save has failed."""
        errors = [result.error for result in self._writer.finished() if result.error is not None]
        for error in errors:
            self._warn(step, str(error))
        self._tell_if_slow(step)
        while self._changed:
            self._reporter.checkpoint(_as_event(self._changed.popleft()))
        return bool(errors)

    def _tell_if_slow(self, step: int) -> None:
        """Once for each thing the writer does; a checkpoint that is due meanwhile waits its turn."""
        begun = self._writer.under_way()
        if begun is None or begun == self._told_slow:
            return
        what, since = begun
        seconds = time.monotonic() - since
        if seconds >= self._slow_after_s:
            self._told_slow = begun
            words = f"the disk is slow: {what} for {seconds:.1f} s"
            self._warn(step, f"{words}; training goes on, and the next checkpoint waits for it")

    def _warn(self, step: int, message: str) -> None:
        self._reporter.finding(
            Finding(step=step, guard="checkpoint", severity=Severity.WARNING, message=message)
        )


def _as_event(record: Record) -> CheckpointChanged:
    check = f"{record.failed_check}: {record.found}" if record.failed_check else None
    return CheckpointChanged(
        step=record.step,
        checkpoint=record.name,
        state=CheckpointState(record.state.value),
        size_bytes=record.size_bytes,
        probe_loss=record.probe_loss,
        seconds=record.seconds,
        failed_check=check,
    )
