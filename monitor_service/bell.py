"""Wakes replies that are held back until a command for their run appears."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Bell:
    """One bell for each run that somebody waits for; rung from any thread, heard in the event loop."""

    def __init__(self) -> None:
        self._listeners: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False

    @contextmanager
    def listen(self, run: str) -> Iterator[asyncio.Event]:
        """An event that is set when the bell of ``run`` rings inside this block. For the event loop only.

        Listen before looking into the database, or a command that appears in between is missed.
        """
        self._loop = asyncio.get_running_loop()
        heard = asyncio.Event()
        if self._is_closed:
            heard.set()
        self._listeners[run].add(heard)
        try:
            yield heard
        finally:
            self._listeners[run].discard(heard)
            if not self._listeners[run]:
                del self._listeners[run]

    @property
    def num_listening(self) -> int:
        return sum(map(len, list(self._listeners.values())))

    @property
    def is_listened_to(self) -> bool:
        return bool(self._listeners)

    def ring(self, run: str) -> None:
        """Wake everybody who waits for ``run``. For any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ring, run)

    def close(self) -> None:
        """Wake everybody, and let nobody wait from now on: the server ends. For any thread."""
        self._is_closed = True
        for run in list(self._listeners):
            self.ring(run)

    def _ring(self, run: str) -> None:
        for heard in self._listeners.get(run, ()):
            heard.set()


async def hear(heard: asyncio.Event, within_s: float) -> bool:
    """Whether ``heard`` is set within the time."""
    try:
        async with asyncio.timeout(within_s):
            return await heard.wait()
    except TimeoutError:
        return False
