"""The watchdog: a thread that notices when a phase of the loop hangs, says where, and frees it.

It learns how long each phase takes. One that takes far longer is told of with the stacks of all threads; then
the loop's thread is interrupted where it stands and goes back to its last snapshot. Where nothing can
interrupt it (a call into C that never returns) the process ends after a grace, so that whoever started it
starts it again: it resumes from the newest good checkpoint.
"""

import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

from pydantic import Field

from trainer.section import Section

log = logging.getLogger(__name__)

EXIT_HUNG = 6
"""Exit code of a process that could not be freed."""

_SETTLED = "report"
"""The phase that keeps the way back open: cutting it short could spoil what is to be gone back to."""
_DEEPEST = 12
_TICKS = 20
_SIGNAL = getattr(signal, "SIGRTMIN", None)


class WatchdogConfig(Section):
    """When a phase counts as hung, and what follows."""

    least_s: float = Field(5.0, gt=0, description="No phase hangs before this, seconds.")
    factor: float = Field(5.0, ge=1, description="A phase hangs after this many times the p99 of its own.")
    first_s: float = Field(
        300.0, gt=0, description="The limit while a phase has been seen fewer than 32 times, seconds."
    )
    give_up_after_s: float = Field(
        600.0,
        gt=0,
        description="A loop that could not be freed for this long ends the process with exit code 6; inf: "
        "never.",
    )


class Hung(Exception):
    """Raised in the loop's own thread, out of a phase that did not end."""


@dataclass(frozen=True)
class Hang:
    """A phase that does not end: how long it has taken and was allowed to, seconds, and all stacks."""

    phase: str
    seconds: float
    limit_s: float
    stacks: str

    def __str__(self) -> str:
        return f"{self.phase} has not ended for {self.seconds:.1f} s; {self.limit_s:.1f} s is its limit"


class Limits:
    """How long each phase may take, learned from the last 512 durations of it."""

    def __init__(self, config: WatchdogConfig) -> None:
        self._config = config
        self._seen: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=512))
        self._longest: defaultdict[str, float] = defaultdict(float)
        self._limits: dict[str, float] = {}

    def learn(self, phase: str, seconds: float) -> None:
        """Take a phase that ended into account; its limit is worked out anew every 32 of them."""
        seen = self._seen[phase]
        seen.append(seconds)
        # a save comes once in a thousand steps, so it shows in no p99: twice the longest is always allowed
        self._longest[phase] = max(self._longest[phase], seconds)
        if len(seen) % 32 == 0:
            p99 = sorted(seen)[math.ceil(0.99 * len(seen)) - 1]
            self._limits[phase] = max(self._config.least_s, self._config.factor * p99)

    def of(self, phase: str) -> float:
        """Seconds."""
        return max(self._limits.get(phase, self._config.first_s), 2 * self._longest[phase])


class Watchdog:
    """Hears of each phase through ``enter`` and watches from a thread of its own between start and stop.

    Args:
        tell: called in the watchdog's thread for each hang, once, before anything is done about it.
        give_up: called there when the loop could not be freed; does not return (``end_process``).
        frees: whether to interrupt a phase that hangs; not where other ranks wait for its end.
    """

    def __init__(
        self,
        config: WatchdogConfig,
        tell: Callable[[Hang], None],
        give_up: Callable[[Hang], None],
        *,
        frees: bool = True,
    ) -> None:
        self.config = config
        self._tell, self._give_up, self._frees = tell, give_up, frees
        self._limits = Limits(config)
        self._at: tuple[str, float] | None = None  # one name for both, so that no thread reads half of it
        self._to_free: tuple[str, float] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._loop = threading.current_thread()

    def start(self) -> None:
        """Watch the thread that calls this. It is interrupted only if it is the main one."""
        self._loop = threading.current_thread()
        if self._can_interrupt:
            assert _SIGNAL is not None
            signal.signal(_SIGNAL, self._interrupt)
        self._thread.start()

    def enter(self, phase: str) -> None:
        """A phase begins, and the one before it ended. Costs about a microsecond."""
        now = time.monotonic()
        if self._at is not None:
            self._limits.learn(self._at[0], now - self._at[1])
        self._at = phase, now

    def rest(self) -> None:
        """What comes now is no phase: it may take its time."""
        self._at = None

    def stop(self) -> None:
        """End the thread."""
        self.rest()
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def _can_interrupt(self) -> bool:
        return self._frees and _SIGNAL is not None and self._loop is threading.main_thread()

    def _watch(self) -> None:
        tick = min(1.0, self.config.least_s / _TICKS)
        looked_at, awake, has_told, before = self._at, 0.0, False, time.monotonic()
        while not self._stopping.wait(tick):
            now, at = time.monotonic(), self._at
            if at is not looked_at:
                looked_at, awake, has_told = at, 0.0, False
            # a process that was stopped or starved has not hung: only time in which this thread ran counts
            awake += min(now - before, 2 * tick)
            before = now
            if at is not None:
                has_told = self._judge(at, awake, has_told)

    def _judge(self, at: tuple[str, float], seconds: float, has_told: bool) -> bool:
        limit = self._limits.of(at[0])
        if seconds > limit and not has_told:
            self._tell(Hang(at[0], seconds, limit, stacks()))
            self._free(at)
        elif seconds > limit + self.config.give_up_after_s:
            self._give_up(Hang(at[0], seconds, limit, ""))
        return seconds > limit

    def _free(self, at: tuple[str, float]) -> None:
        if self._can_interrupt and at[0] != _SETTLED:
            self._to_free = at
            assert self._loop.ident is not None
            assert _SIGNAL is not None
            signal.pthread_kill(self._loop.ident, _SIGNAL)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """In the loop's thread: the phase may have ended since, and only the one that hung is cut short."""
        at, self._to_free = self._to_free, None
        if at is not None and at is self._at:
            self.rest()
            raise Hung(f"{at[0]} had not ended after {time.monotonic() - at[1]:.1f} s")


def stacks() -> str:
    """The stack of every Python thread, innermost frames last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    own = threading.get_ident()
    texts = [
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame)[-_DEEPEST:])}"
        for ident, frame in sys._current_frames().items()
        if ident != own
    ]
    return "\n".join(texts)


def end_process(say_goodbye: Callable[[Hang], None]) -> Callable[[Hang], None]:
    """What gives up: says so in the log, calls ``say_goodbye``, and ends the process whatever hangs."""

    def give_up(hang: Hang) -> None:
        log.critical("%s, and it can't be freed: this process ends with exit code %d", hang, EXIT_HUNG)
        try:
            say_goodbye(hang)
        finally:
            logging.shutdown()
            os._exit(EXIT_HUNG)

    return give_up
