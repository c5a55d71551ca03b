"""The link's side that waits: packs what was recorded, talks with the monitor, and ends in time.

How commands come and findings leave in milliseconds although replies are held: when nothing waits, a batch
asks the monitor to hold its reply (``hold_s``), and a command lets go of it at once. What becomes urgent
meanwhile overtakes on a second connection, in a batch of its own whose reply is not held. While the
monitor is away nothing overtakes: batches go out in order, one after another.

A batch is written to the spool before it is first sent, so whatever left memory outlives a SIGKILL.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from shared.exchange import OutboxCounts
from trainer.link.config import LinkConfig
from trainer.link.courier import Courier
from trainer.link.inbox import Inbox
from trainer.link.outbox import Address, Outbox, SpoolError
from trainer.link.packer import Packer
from trainer.link.recorder import Piece, Recorder
from trainer.link.segment import Record
from trainer.link.sender import Sender

URGENT_GAP_S = 0.05
"""Pause between two urgent packings: a guard that fires at every step must not keep the thread busy."""
AFTER_MISTAKE_S = 1.0
FAREWELL_S = 1.0
"""How long the end waits for a monitor that is away; all that is left is on disk by then."""

log = logging.getLogger(__name__)


class Conversation:
    """Runs in the link's thread, on an event loop of its own; ``hurry`` and ``finish`` come from outside."""

    def __init__(
        self,
        config: LinkConfig,
        address: Address,
        recorder: Recorder,
        outbox: Outbox,
        inbox: Inbox,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._address, self._clock = config, address, clock
        self._recorder, self._outbox, self._inbox = recorder, outbox, inbox
        self._packer = Packer(recorder, outbox)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._urgent, self._stored, self._closing = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._deadline_s = 0.0
        self._packed_at = self._listen_at = clock()

    def prepare(self) -> None:
        """Before the thread starts: from here on ``hurry`` and ``finish`` are heard."""
        self._loop = asyncio.new_event_loop()

    def run(self) -> None:
        """Until ``finish``: the body of the thread."""
        assert self._loop is not None, "prepare comes first"
        try:
            self._loop.run_until_complete(self._main())
        except Exception:
            log.exception("link: ended by a mistake of its own; training goes on without a monitor")
        finally:
            # Not asyncio.run: it would wait for a name server that does not answer.
            self._loop.close()

    def hurry(self) -> None:
        """Something urgent was recorded."""
        self._call(self._urgent.set)

    def finish(self, deadline_s: float) -> None:
        """Write the rest to disk now, send it for at most ``deadline_s``, then end."""
        self._call(lambda: self._begin_to_close(deadline_s))

    def counts(self) -> OutboxCounts:
        """What became of everything recorded in this session."""
        return OutboxCounts(
            spooled_batches=self._outbox.spooled,
            dropped_steps=self._recorder.dropped_steps,
            dropped_events=self._recorder.dropped_events,
            rejected_batches=self._outbox.rejected,
            pending_batches=self._outbox.pending,
            spool_bytes=self._outbox.size_bytes,
        )

    def _call(self, function: Callable[[], None]) -> None:
        """Have ``function`` called in the link's thread; without effect before and after its life."""
        if self._loop is not None:
            with suppress(RuntimeError):  # closed
                self._loop.call_soon_threadsafe(function)

    def _begin_to_close(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._closing.set()

    async def _main(self) -> None:
        self._open_spool()
        async with Courier(self._config, self._address.run) as courier:
            self._sender = Sender(
                self._config, self._address, courier, self._packer, self._outbox, self._inbox
            )
            saver = asyncio.create_task(_again_after_mistakes(self._save))
            server = asyncio.create_task(_again_after_mistakes(self._serve))
            await self._closing.wait()
            saver.cancel()
            self._pack()
            self._outbox.sync()
            self._stored.set()
            self._sender.in_a_hurry.set()
            first = min(self._deadline_s, FAREWELL_S)
            await asyncio.wait({server}, timeout=first)
            if not self._sender.is_away:
                await asyncio.wait({server}, timeout=self._deadline_s - first)
            server.cancel()
            await asyncio.gather(saver, server, return_exceptions=True)
        self._recorder.abandon()
        self._outbox.close()

    def _open_spool(self) -> None:
        try:
            self._outbox.open()
            self._address.save(self._outbox.directory)
        except (OSError, SpoolError) as error:
            log.warning("spool: %s; batches wait in memory only", error)
        if self._outbox.pending:
            log.info(
                "spool %s: %d batches of an earlier process go first",
                self._outbox.directory,
                self._outbox.pending,
            )

    def _pack(self, *, even_if_empty: bool = False) -> None:
        """Move what was recorded into the outbox.

        The reply may be held when nothing else waits. Decided here, once: a repeat is equal byte by byte, and
        a backlog of batches with held replies would drain at one batch a second.
        """
        pieces: list[Piece] = []
        if self._outbox.has_room(for_steps=False):
            pieces = self._recorder.collect(with_steps=self._outbox.has_room(for_steps=True))
        if not pieces and even_if_empty and self._recorder.attempt is not None:
            pieces = [Piece(self._recorder.attempt)]
        before = self._outbox.pending
        is_idle = not (before or self._sender.is_away or self._closing.is_set())
        self._packer.pack(pieces, self.counts(), self._config.hold_s if is_idle else 0.0)
        self._packed_at = self._clock()
        if self._sender.is_away:
            self._outbox.spooled += self._outbox.pending - before
        if self._outbox.pending > before:
            self._stored.set()

    async def _save(self) -> None:
        """Pack when something is urgent, and when the monitor is too late for memory to wait for it."""
        while True:
            if await _is_set_within(self._urgent, self._config.flush_s):
                self._urgent.clear()
                self._pack()
                await asyncio.sleep(URGENT_GAP_S)
            elif self._clock() - self._packed_at >= self._config.flush_s + self._config.hold_s:
                self._pack()
                self._outbox.sync()
            if self._sender.is_away:
                self._outbox.sync()

    async def _serve(self) -> None:
        """Send batch after batch; with none waiting, pack the next in time. Ends when closing and done."""
        while True:
            self._stored.clear()
            record = self._outbox.take()
            if record is not None:
                await self._send(record)
            elif self._sender.in_a_hurry.is_set():
                return  # closing, and the last of it has been packed
            elif not await _is_set_within(self._stored, self._listen_at - self._clock()):
                self._listen_at = self._clock() + self._config.flush_s
                self._pack(even_if_empty=True)

    async def _send(self, record: Record) -> None:
        """Send one, and set when to listen next: at once after news from either side, else in ``flush_s``.

        So a monitor that answers without holding is not asked in a loop.
        """
        self._listen_at = self._clock() + self._config.flush_s
        if record.hold_s:
            await self._send_held(record)
        else:
            await self._sender.deliver(record)
        if self._sender.has_news:
            self._sender.has_news = False
            self._listen_at = self._clock()

    async def _send_held(self, record: Record) -> None:
        """Send a batch whose reply is held, and let what is stored meanwhile overtake it."""
        held = asyncio.create_task(self._sender.try_once(record))
        failed: list[Record] = []
        try:
            while not failed and await _is_set_before(self._stored, held):
                self._stored.clear()
                failed = await self._overtake()
            if not await held:
                failed.insert(0, record)
        finally:
            held.cancel()
        for late in failed:
            await self._sender.deliver(late)

    async def _overtake(self) -> list[Record]:
        """Send what is in the outbox; stops at the first that fails and gives it back."""
        while (record := self._outbox.take()) is not None:
            if not await self._sender.try_once(record):
                return [record]
        return []


async def _again_after_mistakes(work: Callable[[], Awaitable[None]]) -> None:
    """A mistake in the link is logged and must not end it: the training's reports hang on it."""
    while True:
        try:
            return await work()
        except Exception:
            log.exception("link: unexpected; goes on in %g s", AFTER_MISTAKE_S)
            await asyncio.sleep(AFTER_MISTAKE_S)


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):  # wait_for may swallow a cancel, before Python 3.12
            await event.wait()
    return event.is_set()


async def _is_set_before(event: asyncio.Event, task: "asyncio.Task[bool]") -> bool:
    """Whether the event comes before the end of the task."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    return not task.done()
