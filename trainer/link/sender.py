"""Decides what becomes of a batch: stored, sent again, halved, or set aside."""

import asyncio
import logging
import random
import time
from contextlib import suppress

from trainer.link.config import LinkConfig
from trainer.link.courier import Answer, Courier, NotTaken
from trainer.link.inbox import Inbox, ReplyRefused
from trainer.link.outbox import Address, Outbox
from trainer.link.packer import Packer
from trainer.link.segment import Record
from trainer.link.sparing import SparingLog

CONFLICT = 409
TOO_LARGE = 413
REFUSED_FOR_GOOD = frozenset({409, 413, 415, 422})
"""What the monitor will say each time. All other trouble may pass, so the batch is kept."""
UNKNOWN_HERE = frozenset({401, 403, 404})
"""The run, or the token, has to be told again."""
MAX_RETRY_AFTER_S = 60.0
LONGEST_PAUSE_IN_A_HURRY_S = 0.5

log = logging.getLogger(__name__)


class Sender:
    """Sends batches of one run, remembers how the monitor is, and backs off while it is away."""

    def __init__(
        self,
        config: LinkConfig,
        address: Address,
        courier: Courier,
        packer: Packer,
        outbox: Outbox,
        inbox: Inbox,
    ) -> None:
        self._config, self._address, self._courier = config, address, courier
        self._packer, self._outbox, self._inbox = packer, outbox, inbox
        # Its own generator: the global one belongs to the training, which must be repeatable.
        self._random = random.Random()
        self._quietly = SparingLog(log)
        self._is_registered = self._is_refused = False
        self._failures = 0
        self._away_since = 0.0
        self._retry_after_s: float | None = None
        self.in_a_hurry = asyncio.Event()
        """Set when the process is about to end: pauses are short from then on."""
        self.has_news = False
        """Something was told or heard without a held reply after it; whoever listens again sets this back."""

    @property
    def is_away(self) -> bool:
        """Whether the last try failed."""
        return self._failures > 0

    def pause_s(self) -> float:
        """Seconds until the next try: what the monitor asked for, or exponential with full jitter."""
        if self._retry_after_s is not None:
            return min(self._retry_after_s, MAX_RETRY_AFTER_S)
        longest = self._config.back_off_first_s * 2.0 ** min(self._failures - 1, 30)
        return self._random.uniform(0, min(longest, self._config.back_off_max_s))

    async def try_once(self, record: Record) -> bool:
        """One try; ``True`` when the batch needs no more: it is stored, halved, or set aside."""
        try:
            if not self._is_registered:
                await self._register()
            self._judge(record, await self._courier.exchange(record.body, record.hold_s))
        except NotTaken as trouble:
            self._note_failure(trouble)
            return False
        except Exception as error:  # the link's own mistake must not end the link
            self._quietly.warning("unexpected", "link: unexpected %r, goes on", error, with_traceback=True)
            self._note_failure(NotTaken(repr(error)))
            return False
        self._note_success()
        return True

    async def _register(self) -> None:
        answer = await self._courier.register(self._address.spec.model_dump_json().encode())
        if answer.status == CONFLICT:
            self._say_refused(answer)
            raise NotTaken(answer.describe(), retry_after_s=MAX_RETRY_AFTER_S)
        if not answer.is_success:
            raise NotTaken(
                f"it does not register the run: {answer.describe()}", retry_after_s=answer.retry_after_s
            )
        self._is_registered = True

    def _say_refused(self, answer: Answer) -> None:
        """Once, for whoever reads the log: the training goes on, and nobody will see it under this name."""
        if not self._is_refused:
            self._is_refused = True
            log.error(
                "run %s is not taken by the monitor: %s. Training goes on without it; its reports wait in %s",
                self._address.run,
                answer.describe(),
                self._outbox.directory,
            )

    def _judge(self, record: Record, answer: Answer) -> None:
        if answer.is_success:
            self._commit(record, answer)
        elif answer.status == TOO_LARGE and self._packer.halve(record):
            log.info("batch %d is too large for the monitor and goes in two parts", record.seq)
        elif answer.status in REFUSED_FOR_GOOD:
            self._outbox.reject(record, answer.describe())
            self._quietly.warning(
                "refused",
                "the monitor refuses batch %d for good: %s; it is set aside",
                record.seq,
                answer.describe(),
            )
        else:
            raise NotTaken(
                answer.describe(),
                retry_after_s=answer.retry_after_s,
                register_again=answer.status in UNKNOWN_HERE,
            )

    def _commit(self, record: Record, answer: Answer) -> None:
        try:
            has_new_command = self._inbox.accept(answer.body, record.seq)
        except ReplyRefused as refused:
            raise NotTaken(str(refused)) from refused
        self.has_news |= has_new_command or not record.hold_s
        self._outbox.settle(record)

    def _note_failure(self, trouble: NotTaken) -> None:
        if not self._failures:
            self._away_since = time.monotonic()
            self._outbox.spooled += self._outbox.pending
        self._failures += 1
        self._retry_after_s = trouble.retry_after_s
        self._is_registered &= not trouble.register_again
        self._outbox.sync()
        if self._is_refused:
            return  # said once
        self._quietly.warning(
            "away", "monitor %s: %s; training goes on, batches wait in the spool", self._config.url, trouble
        )

    def _note_success(self) -> None:
        if self._failures:
            log.info(
                "monitor %s takes batches again after %.0f s; %d wait",
                self._config.url,
                time.monotonic() - self._away_since,
                self._outbox.pending,
            )
        self._failures = 0
        self._is_refused = False
        self._retry_after_s = None

    async def deliver(self, record: Record) -> None:
        """Try until the batch needs no more, with a pause after each failure, one before this call included.

        Cancel it to give up; the batch then waits in the spool.
        """
        if self.is_away:
            await self._pause()
        while not await self.try_once(record):
            await self._pause()

    async def _pause(self) -> None:
        """Wait before the next try; a hurry that begins meanwhile ends the wait."""
        if self.in_a_hurry.is_set():
            await asyncio.sleep(min(self.pause_s(), LONGEST_PAUSE_IN_A_HURRY_S))
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self.pause_s()):
                await self.in_a_hurry.wait()
