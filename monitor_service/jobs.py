"""Jobs of the writer: a piece of work each, its outcome, and who waits for it: a thread, or an event loop."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar, cast

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from monitor_service.errors import StoreUnavailable

T = TypeVar("T")
Work = Callable[[Connection], T]
"""A piece of writing: runs inside a transaction that it neither opens nor ends."""


class JobFailed(Exception):
    """A piece of work failed; the job has the reason."""


class Job(Generic[T]):
    """One piece of work, its outcome, and whoever waits for it."""

    def __init__(self, work: Work[T], waiter: "Future[T] | asyncio.Future[T]") -> None:
        self.waiter = waiter
        self._work = work
        self._result: T | None = None
        self._error: Exception | None = None

    def claim(self) -> bool:
        """Whether somebody still waits for it."""
        if isinstance(self.waiter, Future):
            return self.waiter.set_running_or_notify_cancel()
        return not self.waiter.cancelled()

    def run(self, connection: Connection) -> None:
        """Do the work.

        Raises:
            OperationalError: the database itself is in trouble, which is everybody's.
            JobFailed: the work raised something else, which belongs to the one who waits.
        """
        self._error = None  # of an earlier try: this one may do
        try:
            self._result = self._work(connection)
        except OperationalError:
            raise
        except Exception as error:
            self._error = _told(error)
            raise JobFailed from error

    def run_apart(self, connection: Connection) -> None:
        """Do the work under a savepoint: what it cannot do is undone alone. Raises OperationalError."""
        with contextlib.suppress(JobFailed), connection.begin_nested():
            self.run(connection)

    def refuse(self, error: StoreUnavailable) -> None:
        """Nothing of the work is stored, whatever it came to."""
        self._error = error

    def tell(self) -> None:
        """Give the outcome to whoever waits, in their thread if that is an event loop's."""
        if self.waiter.done():  # they turned away
            return
        if self._error is None:
            self.waiter.set_result(cast(T, self._result))
        else:
            self.waiter.set_exception(self._error)


def _told(error: Exception) -> Exception:
    """No future takes a StopIteration, and those who wait behind it would never be told."""
    if not isinstance(error, StopIteration):
        return error
    told = RuntimeError("the work raised StopIteration")
    told.__cause__ = error
    return told


def answer(jobs: Iterable[Job[Any]]) -> None:
    """Tell all who wait. An event loop is woken once for all of its jobs."""
    waking: defaultdict[asyncio.AbstractEventLoop, list[Job[Any]]] = defaultdict(list)
    for job in jobs:
        if isinstance(job.waiter, Future):
            job.tell()
        else:
            waking[job.waiter.get_loop()].append(job)
    for loop, some in waking.items():
        with contextlib.suppress(RuntimeError):  # the loop has ended, and everybody in it
            loop.call_soon_threadsafe(_tell_all, some)


def _tell_all(jobs: Iterable[Job[Any]]) -> None:
    for job in jobs:
        job.tell()
