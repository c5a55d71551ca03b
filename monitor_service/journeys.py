"""How long commands take on their way: ordered to delivered, and delivered to the first finite step after."""

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from prometheus_client import Histogram

from monitor_service.commands import PATIENCE
from shared.commands import Command, CommandKind
from shared.events import AttemptStarted, CommandUpdate
from shared.exchange import Batch

_ENDS_BADLY = ("failed", "refused", "cancelled")

MOST = 1_000
"""Commands that are followed at once; the oldest are given up."""


class Journeys:
    """Follows the commands that this process delivers; one that another process delivers is its business."""

    def __init__(self, delivery: Histogram, rollback: Histogram) -> None:
        self._delivery, self._rollback = delivery, rollback
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._going_back: OrderedDict[str, _Rollback] = OrderedDict()
        self._lock = threading.Lock()

    def delivered(self, run: str, commands: Sequence[Command], now: datetime) -> None:
        """A reply carries these."""
        with self._lock:
            for command in commands:
                if command.id in self._seen:
                    continue
                self._seen[command.id] = None
                self._delivery.labels(command.kind).observe(max((now - command.issued_at).total_seconds(), 0))
                if command.kind is CommandKind.ROLL_BACK:
                    self._going_back[run] = _Rollback(command, now)
            for known in (self._seen, self._going_back):
                while len(known) > MOST:
                    known.popitem(last=False)

    def received(self, run: str, batch: Batch, now: datetime) -> None:
        """A batch came, perhaps with the first steps after a rollback, or with word that none will come."""
        if not self._going_back or not (batch.columns.step or batch.events):
            return
        with self._lock:
            journey = self._going_back.get(run)
            if journey is None:
                return
            if journey.has_failed(batch, now):
                del self._going_back[run]
            elif batch.attempt > journey.command.attempt and _has_finite_loss(batch):
                del self._going_back[run]
                self._rollback.observe(max((now - journey.since).total_seconds(), 0))


@dataclass(frozen=True)
class _Rollback:
    """A rollback that was delivered, and when."""

    command: Command
    since: datetime

    def has_failed(self, batch: Batch, now: datetime) -> bool:
        """Whether the next attempt is not its doing: the trainer says so, started anew, or is silent."""
        if now > self.command.expires_at + PATIENCE:
            return True
        return any(
            (
                isinstance(event, CommandUpdate)
                and event.command == self.command.id
                and event.state in _ENDS_BADLY
            )
            or (isinstance(event, AttemptStarted) and event.reason != "rollback")
            for event in batch.events
        )


def _has_finite_loss(batch: Batch) -> bool:
    losses = batch.columns.series.get("loss", ())
    return any(loss is not None and math.isfinite(loss) for loss in losses)
