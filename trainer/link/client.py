"""The link: what the training loop talks to. One daemon thread behind it talks to the monitor."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from shared.commands import Asked
from shared.events import Event
from shared.exchange import OutboxCounts, RunSpec
from trainer.link.config import LinkConfig
from trainer.link.conversation import Conversation
from trainer.link.inbox import Inbox
from trainer.link.outbox import Address, Outbox
from trainer.link.recorder import Recorder

JOIN_GRACE_S = 1.0
"""For the thread to close its connections and files after the deadline."""

log = logging.getLogger(__name__)


class Link:
    """Reports a run to its monitor and brings back commands. No call but ``close`` waits for network or disk.

    Args:
        config: without ``url`` every call does nothing.
        run: the run's name.
        spec: what the monitor is told about the run.
        directory: the spool, for this run alone. One that can't be used costs the spool, not the run.
        clock: monotonic seconds.

    Raises:
        ValueError: ``run`` can't be a run's name, or ``spec`` holds what JSON has no form for.
    """

    def __init__(
        self,
        config: LinkConfig,
        run: str,
        spec: RunSpec,
        directory: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        address = Address(run=run, spec=spec)
        address.model_dump_json()  # better now than in the thread, where nobody could mend it
        self._directory = directory
        self._recorder = Recorder(config.max_steps, config.max_events)
        self._inbox = Inbox(clock)
        self._conversation = Conversation(
            config,
            address,
            self._recorder,
            Outbox(directory, config.spool_limit_bytes),
            self._inbox,
            clock,
        )
        self._is_on = bool(config.url)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to send. Does not wait for the monitor to be there."""
        if self._is_on and self._thread is None:
            self._conversation.prepare()
            self._thread = threading.Thread(target=self._conversation.run, name="link", daemon=True)
            self._thread.start()

    def record_step(self, attempt: int, step: int, time_s: float, values: Mapping[str, float]) -> None:
        """Report an applied step: its numbers by series, at Unix time ``time_s``. Costs 1 us."""
        if self._is_on:
            self._recorder.add_step(attempt, step, time_s, values)

    def record_event(self, attempt: int, event: Event, *, urgent: bool = True) -> None:
        """Report an event; it leaves at once, or with the next batch when it is not ``urgent``."""
        if self._is_on:
            self._recorder.add_event(attempt, event)
            if urgent:
                self._conversation.hurry()

    def hurry(self) -> None:
        """Write what was recorded to the spool now, and send it: before a restart may begin after it."""
        if self._is_on:
            self._conversation.hurry()

    def commands(self) -> list[Asked]:
        """Commands and withdrawals that came since the last call: each once, and lapsed commands never."""
        return self._inbox.take()

    def counts(self) -> OutboxCounts:
        """What the outbox has done so far in this session."""
        return self._conversation.counts()

    def close(self, deadline_s: float = 10.0) -> OutboxCounts:
        """Send what is left for at most ``deadline_s`` seconds; the counts say how much still waits on disk.

        Everything goes to the disk first, so nothing is lost when the deadline passes; a monitor that is away
        is waited for one second only.
        """
        if self._thread is not None:
            self._conversation.finish(deadline_s)
            self._thread.join(deadline_s + JOIN_GRACE_S)
            if self._thread.is_alive():
                self._recorder.abandon()
            self._thread = None
            self._is_on = False
            self._say_what_is_left()
        return self.counts()

    def _say_what_is_left(self) -> None:
        left = self.counts()
        if left.pending_batches:
            log.warning(
                "%d batches did not reach the monitor; they wait in %s for the next start or a delivery",
                left.pending_batches,
                self._directory,
            )
        if left.dropped_steps or left.dropped_events or left.rejected_batches:
            log.warning(
                "reports lost: %d steps, %d events, %d batches refused",
                left.dropped_steps,
                left.dropped_events,
                left.rejected_batches,
            )
