"""The database: one thread that writes, with group commit, and short read connections beside it."""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from monitor_service.errors import StoreUnavailable
from monitor_service.jobs import Job, JobFailed, Work, answer
from monitor_service.prepared import carry_out
from monitor_service.recall import Recall
from monitor_service.settings import Durability

log = logging.getLogger(__name__)

GROUP = 256
"""Requests in one commit at most."""

DEADLOCK = "40P01"
"""PostgreSQL's word for it."""

DEADLOCK_TRIES = 5
"""So often a piece of work that holds several runs begins again when another process held them crosswise."""

READERS_S = 5.0
"""How long a store that closes waits for those who are reading."""

PRAGMAS = (
    "journal_mode = WAL",
    "foreign_keys = ON",
    "journal_size_limit = 67108864",
)

T = TypeVar("T")

Observer = Callable[[int, float], None]
"""Told about each group commit: how many requests, how many seconds."""


def open_engine(url: str, durable: Durability = Durability.NORMAL) -> Engine:
    """An engine for ``url``; nothing is opened yet. ``durable`` is for SQLite; PostgreSQL always syncs."""
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(
            url, pool_pre_ping=True, pool_size=8, max_overflow=40, connect_args={"connect_timeout": 5}
        )
    engine = create_engine(url, pool_size=8, max_overflow=40)
    event.listen(engine, "connect", partial(_prepare_sqlite, synchronous=durable))
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def writing(engine: Engine) -> Connection:
    """A connection whose transactions may write.

    On SQLite they take the write lock at their beginning: a transaction that reads first and writes
    later could find the file changed in between, and would fail.
    """
    return engine.connect().execution_options(writes=True)


def _prepare_sqlite(raw: Any, record: object, *, synchronous: str) -> None:
    raw.isolation_level = None  # the driver's own BEGIN comes too late; _begin_sqlite sends ours
    cursor = raw.cursor()
    cursor.execute("PRAGMA busy_timeout = 5000")  # first: the next lines may have to wait for another process
    if cursor.execute("PRAGMA page_count").fetchone() == (0,):  # later it changes nothing, but writes
        cursor.execute("PRAGMA auto_vacuum = INCREMENTAL")  # upkeep gives free pages back
    for pragma in (*PRAGMAS, f"synchronous = {synchronous}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    carry_out(connection, "BEGIN IMMEDIATE" if writes else "BEGIN")


class Store:
    """Writes go through one thread and are answered after their commit; reads have own connections."""

    def __init__(
        self,
        engine: Engine,
        *,
        queue_size: int,
        observe: Observer,
        complain: Callable[[], None] = lambda: None,
    ) -> None:
        self.engine = engine
        self.recall = Recall()
        self._observe, self._complain = observe, complain
        self._waiting: queue.SimpleQueue[Job[Any] | None] = queue.SimpleQueue()
        self._most_waiting = queue_size
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._lock = threading.Lock()
        self._is_open = False
        self._kept: Connection | None = None

    def start(self) -> None:
        self._is_open = True
        self._thread.start()

    def close(self) -> None:
        """Commit all that waits, end the thread, let readers end (``READERS_S``), close the connections."""
        with self._lock:
            was_open, self._is_open = self._is_open, False
        if was_open:
            self._waiting.put(None)
            self._thread.join()
        self._await_readers()
        self.engine.dispose()

    @property
    def is_alive(self) -> bool:
        """Whether something written now would be committed."""
        return self._is_open and self._thread.is_alive()

    @property
    def num_waiting(self) -> int:
        """Requests that wait for the writer."""
        return self._waiting.qsize()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees one state of the database, whatever is committed meanwhile."""
        with self.engine.connect() as connection:
            if self.engine.dialect.name == "postgresql":  # SQLite's transactions are so by themselves
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            connection.begin()  # here, as prepared statements don't begin by themselves
            yield connection

    async def commit(self, work: Work[T]) -> T:
        """Hand ``work`` to the writer; what it came to, after its commit. For an event loop.

        Raises:
            StoreUnavailable: too many wait already, the writer has ended, or the commit failed. Then nothing
                of ``work`` is stored.
        """
        waiter: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put(Job(work, waiter))
        return await waiter

    def submit(self, work: Work[T]) -> Future[T]:
        """The same for any thread: StoreUnavailable comes here or from the future."""
        waiter: Future[T] = Future()
        self._put(Job(work, waiter))
        return waiter

    def write(self, work: Work[T]) -> T:
        """The same, waiting for it."""
        return self.submit(work).result()

    def _put(self, job: Job[Any]) -> None:
        with self._lock:
            if not self.is_alive:
                raise StoreUnavailable("the writer has ended")
            if self._waiting.qsize() >= self._most_waiting:
                raise StoreUnavailable(f"{self._most_waiting} requests wait for the database")
            self._waiting.put(job)

    def _run(self) -> None:
        try:
            while group := self._next_group():
                self._commit([job for job in group if job.claim()])
        finally:
            self._is_open = False
            self._let_go()
            self._refuse_the_rest()

    def _next_group(self) -> list[Job[Any]]:
        """All that waits, or the first to come; an empty list ends the thread."""
        group = []
        job = self._waiting.get()
        while job is not None:
            group.append(job)
            if len(group) == GROUP:
                return group
            try:
                job = self._waiting.get_nowait()
            except queue.Empty:
                return group
        if group:
            self._waiting.put(None)  # commit these first, then meet the end again
        return group

    def _commit(self, group: list[Job[Any]], tries: int = 1) -> None:
        started = time.perf_counter()
        try:
            self._carry_out(group)
        except OperationalError as error:
            is_deadlock = getattr(error.orig, "sqlstate", None) == DEADLOCK
            if is_deadlock and len(group) > 1:  # two processes held each other's runs; most jobs hold one
                for job in group:
                    self._commit([job])
            elif is_deadlock and tries < DEADLOCK_TRIES:
                self._commit(group, tries + 1)
            else:
                self._refuse(group, error)
        except SQLAlchemyError as error:
            self._refuse(group, error)
        else:
            self._observe(len(group), time.perf_counter() - started)
            answer(group)

    def _carry_out(self, group: list[Job[Any]]) -> None:
        """All in one transaction.

        A savepoint for each job costs as much as the job. So they do without, and when one of several fails,
        all are undone and begin again with savepoints, which tell it from its neighbours.
        """
        try:
            with self._transaction() as connection:
                for job in group:
                    job.run(connection)
        except JobFailed:
            if len(group) == 1:
                return
            with self._transaction() as connection:
                for job in group:
                    job.run_apart(connection)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """The writer's. A file's connection is kept; a server's is looked at before each use."""
        if self.engine.dialect.name != "sqlite":
            with writing(self.engine) as connection, connection.begin():
                yield connection
            return
        if self._kept is None:
            self._kept = writing(self.engine)
        try:
            with self._kept.begin():
                yield self._kept
        except SQLAlchemyError:
            self._let_go()
            raise

    def _let_go(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _await_readers(self) -> None:
        """A connection that is out when the pool ends stays open: nobody closes it when it comes back."""
        pool = self.engine.pool
        deadline = time.monotonic() + READERS_S
        while isinstance(pool, QueuePool) and pool.checkedout() > 0 and time.monotonic() < deadline:
            time.sleep(0.01)

    def _refuse(self, group: list[Job[Any]], error: SQLAlchemyError) -> None:
        log.error("commit of %d requests failed: %s", len(group), error)
        self._complain()
        for job in group:
            job.refuse(StoreUnavailable(str(getattr(error, "orig", error))))
        answer(group)

    def _refuse_the_rest(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._waiting.get_nowait()
                if job is not None and job.claim():
                    job.refuse(StoreUnavailable("the writer has ended"))
                    answer([job])
