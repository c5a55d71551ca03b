"""How the reports of a run arrive: which are missing, which were dropped, how many wait with the trainer."""

from datetime import datetime

from pydantic import Field

from monitor_service.record import Record
from shared.base import Moment
from shared.exchange import Batch, OutboxCounts

MAX_SESSIONS = 4
"""Lives of the trainer that are watched; an older one is left as it is."""

LOSSES = {"steps": "dropped_steps", "events": "dropped_events", "rejected": "rejected_batches"}
"""What is lost, by its name in ``OutboxCounts``."""


class Session(Record):
    """What came from one life of one trainer process."""

    last_seq: int = 0
    received: int = 0
    outbox: OutboxCounts = Field(default_factory=OutboxCounts)

    @property
    def missing(self) -> int:
        return self.last_seq - self.received


class Wire(Record):
    """Running notes about the wire between a trainer and the monitor."""

    sessions: dict[str, Session] = Field(default_factory=dict, description="The newest last.")
    lost: dict[str, int] = Field(default_factory=dict, description="What trainers dropped, of all sessions.")
    lost_at: Moment | None = Field(None, description="When the newest loss was told.")
    gap_since: Moment | None = Field(None, description="Since when a batch is missing.")
    waiting: int = Field(0, description="Batches that wait with the trainer.")
    growing_since: Moment | None = Field(None, description="Since when they become more.")

    @property
    def missing(self) -> int:
        """Batches whose numbers were passed over, so far."""
        return sum(session.missing for session in self.sessions.values())

    def take(self, batch: Batch, now: datetime, *, is_first_heard: bool) -> None:
        """Note one batch that was not here before.

        Args:
            is_first_heard: nothing was ever heard of the run. Of a run that was here before this was
                noted down, or where a session may have been forgotten, the first batch says nothing
                about those before it.
        """
        session = self.sessions.pop(batch.session, None)
        if session is None:
            is_full = len(self.sessions) >= MAX_SESSIONS
            is_old = not is_first_heard and (is_full or not self.sessions)
            session = Session(received=batch.seq - 1, outbox=batch.outbox) if is_old else Session()
        self.sessions[batch.session] = session
        session.received += 1
        if batch.seq > session.last_seq:
            session.last_seq = batch.seq
            self._hear(session, batch.outbox, now)
        for name in list(self.sessions)[:-MAX_SESSIONS]:
            del self.sessions[name]
        self.gap_since = (self.gap_since or now) if self.missing else None

    def _hear(self, session: Session, told: OutboxCounts, now: datetime) -> None:
        for name, field in LOSSES.items():
            more = getattr(told, field) - getattr(session.outbox, field)
            if more > 0:
                self.lost[name] = self.lost.get(name, 0) + more
                self.lost_at = now
        if told.pending_batches > self.waiting:
            self.growing_since = self.growing_since or now
        elif told.pending_batches < self.waiting:
            self.growing_since = None
        self.waiting = told.pending_batches
        session.outbox = told
