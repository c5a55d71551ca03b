"""Tells everybody who listens what is new: one look at the database for all of them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from itertools import islice

from monitor_service import news
from monitor_service.errors import TooManyStreams
from monitor_service.news import News, Position
from monitor_service.store import Store

log = logging.getLogger(__name__)

POLL_S = 0.25
STEPS_EVERY = 4
"""How far runs have come is looked at once in so many looks."""

BACKLOG = 2_000
"""News that wait for one listener; who is slower is let go, and may come back with its position."""

Wanted = Callable[[News], bool]


@dataclass(eq=False)
class Listener:
    """One who listens, and what waits for them; ``None`` is the end."""

    wants: Wanted
    since: Position
    """Where the live news begins for them."""
    waiting: asyncio.Queue[News | None] = field(default_factory=lambda: asyncio.Queue(BACKLOG + 1))

    def tell(self, item: News | None) -> None:
        if not self.waiting.full():
            is_room = self.waiting.qsize() < BACKLOG
            self.waiting.put_nowait(item if is_room else None)


class Newsroom:
    """Looks at the database while anybody listens. All of it but ``close`` is for the event loop."""

    def __init__(self, store: Store, max_streams: int) -> None:
        self._store, self._max_streams = store, max_streams
        self._listeners: set[Listener] = set()
        self._position = Position()
        self._seen: dict[str, str] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._looking: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._is_closed = False

    async def join(self, wants: Wanted) -> Listener:
        """Listen from now on; ``leave`` must follow.

        Raises:
            TooManyStreams: as many as may listen do so already, or the server ends.
        """
        async with self._starting:
            if len(self._listeners) >= self._max_streams or self._is_closed:
                raise TooManyStreams(self._max_streams)
            if self._looking is None or self._looking.done():
                self._loop = asyncio.get_running_loop()
                await asyncio.to_thread(self._begin)
            listener = Listener(wants, self._position)
            self._listeners.add(listener)
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look())
            return listener

    @property
    def num_listening(self) -> int:
        return len(self._listeners)

    def leave(self, listener: Listener) -> None:
        self._listeners.discard(listener)

    async def before(self, listener: Listener, after: Position) -> AsyncIterator[News]:
        """What is stored from ``after`` on, up to where the live news of this listener begins."""
        while found := await asyncio.to_thread(self._stored, after, listener.since):
            after = found[-1].position
            for item in found:
                if listener.wants(item):
                    yield item

    def close(self) -> None:
        """Let everybody go: the server ends. For any thread."""
        self._is_closed = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._tell, [None])

    def _begin(self) -> None:
        self._seen.clear()
        with self._store.reading() as connection:
            self._position = news.newest(connection)
            list(news.steps(connection, self._seen))

    def _stored(self, after: Position, until: Position) -> list[News]:
        with self._store.reading() as connection:
            return list(islice(news.between(connection, after, until), news.PAGE))

    async def _look(self) -> None:
        looks = 0
        while self._listeners:
            await asyncio.sleep(POLL_S)
            looks += 1
            try:
                self._tell(await asyncio.to_thread(self._read, looks % STEPS_EVERY == 0))
            except Exception:  # the next look must come, or all streams would be silent for ever
                log.exception("live news: this look failed, the next one follows")

    def _read(self, with_steps: bool) -> list[News]:
        with self._store.reading() as connection:
            found = list(news.between(connection, self._position))
            position = found[-1].position if found else self._position
            if with_steps:
                found += [replace(item, position=position) for item in news.steps(connection, self._seen)]
        self._position = position
        return found

    def _tell(self, found: list[News] | list[None]) -> None:
        for listener in self._listeners:
            for item in found:
                if item is None or listener.wants(item):
                    listener.tell(item)
