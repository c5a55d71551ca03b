"""Reads the monitor's replies and keeps the commands in them until training asks. Trusts nothing."""

import logging
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from shared.base import Moment
from shared.commands import Asked, Command, Withdrawal
from trainer.link.sparing import SparingLog

MAX_COMMANDS = 10_000
"""Ids remembered in one life of a process. A monitor that orders more is broken, and no more are obeyed."""
MAX_PER_REPLY = 100
"""Commands looked at in one reply; the others come again in the next one."""
MAX_ID_LENGTH = 64
MAX_AT_ONCE = 8
"""Commands handed out at one step boundary; the rest wait for the next: a flood holds up no step."""

log = logging.getLogger(__name__)


class ReplyRefused(Exception):
    """This answer does not confirm the batch; the message says why."""


class _Envelope(BaseModel):
    """What a reply must have to count. Each command is read by itself: one bad one spoils nothing else."""

    model_config = ConfigDict(extra="ignore")

    seq: StrictInt
    server_time: Moment
    commands: list[Any] = Field(default_factory=list)
    withdrawn: list[Any] = Field(default_factory=list)


class Inbox:
    """Commands that arrived and were not yet taken. Each id is handed out once, however often it is repeated.

    So is the withdrawal of each, and before any command: whoever takes both never carries out the command.

    A command lapses by the monitor's clock: it is valid for ``expires_at - server_time``, counted from its
    arrival. So a trainer whose clock is a day off neither obeys stale orders nor refuses fresh ones.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: deque[tuple[float, Command]] = deque()
        self._seen: set[str] = set()
        self._withdrawals: deque[Withdrawal] = deque()
        self._withdrawn: set[str] = set()
        self._quietly = SparingLog(log)

    def accept(self, body: bytes, seq: int) -> bool:
        """Read the reply to batch ``seq`` and keep its commands and withdrawals; whether one was new.

        Raises:
            ReplyRefused: it is no reply, or the reply to another batch.
        """
        try:
            reply = _Envelope.model_validate_json(body)
        except (ValueError, OverflowError) as error:
            raise ReplyRefused(f"its answer is no reply ({_brief(error)})") from error
        if reply.seq != seq:
            raise ReplyRefused(f"it confirms batch {reply.seq} where {seq} was sent")
        fresh = [self._keep(command, reply.server_time) for command in reply.commands[:MAX_PER_REPLY]]
        fresh += [self._keep_withdrawal(one) for one in reply.withdrawn[:MAX_PER_REPLY]]
        return any(fresh)

    def take(self) -> list[Asked]:
        """What is asked now: withdrawals, then commands, oldest first, without those that lapsed waiting."""
        taken: list[Asked] = []
        while self._withdrawals and len(taken) < MAX_AT_ONCE:
            taken.append(self._withdrawals.popleft())
        while self._waiting and len(taken) < MAX_AT_ONCE:
            lapses_at, command = self._waiting.popleft()
            if self._clock() < lapses_at:
                taken.append(command)
            else:
                log.warning("command %s (%s) lapsed before it could be carried out", command.id, command.kind)
        return taken

    def _keep(self, raw: object, server_time: datetime) -> bool:
        try:
            command = Command.model_validate(raw)
        except (ValueError, OverflowError) as error:
            self._quietly.warning("command", "a command that makes no sense is ignored (%s)", _brief(error))
            return False
        if command.id in self._seen:
            return False
        valid_for_s = (command.expires_at - server_time).total_seconds()
        if valid_for_s <= 0:
            self._quietly.warning("expired", "command %s arrived after its time and is ignored", command.id)
            return False
        if len(self._seen) >= MAX_COMMANDS:
            self._quietly.warning("flood", "the monitor sent %d commands; no more are obeyed", MAX_COMMANDS)
            return False
        self._seen.add(command.id)
        self._waiting.append((self._clock() + valid_for_s, command))
        log.info("command %s: %s by %s, %s", command.id, command.kind, command.issued_by, command.reason)
        return True

    def _keep_withdrawal(self, raw: object) -> bool:
        is_id = isinstance(raw, str) and 0 < len(raw) <= MAX_ID_LENGTH
        if not is_id or raw in self._withdrawn or len(self._withdrawn) >= MAX_COMMANDS:
            return False
        self._withdrawn.add(str(raw))
        self._withdrawals.append(Withdrawal(id=str(raw)))
        return True


def _brief(error: Exception) -> str:
    """One line, without the sender's text in full: a reply may be a megabyte of anything."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        return f"{where}: {first['msg']}"[:200]
    return str(error)[:200]
