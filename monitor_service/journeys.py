"""How long commands take on their way: ordered to delivered, and delivered to the first finite step after."""

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime

from prometheus_client import Histogram

from shared.commands import Command, CommandKind
from shared.exchange import Batch

MOST = 1_000
"""Commands that are followed at once; the oldest are given up."""


class Journeys:
    """Follows the commands that this process delivers; one that another process delivers is its business."""

    def __init__(self, delivery: Histogram, rollback: Histogram) -> None:
        self._delivery, self._rollback = delivery, rollback
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._going_back: OrderedDict[str, tuple[int, datetime]] = OrderedDict()
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
                    self._going_back[run] = command.attempt, now
            for known in (self._seen, self._going_back):
                while len(known) > MOST:
                    known.popitem(last=False)

    def received(self, run: str, batch: Batch, now: datetime) -> None:
        """Steps came; perhaps the first of the attempt that a rollback began."""
        if not self._going_back or not batch.columns.step:
            return
        with self._lock:
            attempt, since = self._going_back.get(run, (batch.attempt, now))
            if batch.attempt > attempt and _has_finite_loss(batch):
                del self._going_back[run]
                self._rollback.observe(max((now - since).total_seconds(), 0))


def _has_finite_loss(batch: Batch) -> bool:
    losses = batch.columns.series.get("loss", ())
    return any(loss is not None and math.isfinite(loss) for loss in losses)
