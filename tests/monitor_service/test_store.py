"""The writer: commits in groups, answers after the commit, and lets nobody wait for ever."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.pool import QueuePool

from monitor_service.errors import NotFound, StoreUnavailable
from monitor_service.jobs import Job, JobFailed
from monitor_service.store import Store, open_engine


@pytest.fixture
def commits() -> list[int]:
    return []


@pytest.fixture
def store(tmp_path: Path, commits: list[int]) -> Iterator[Store]:
    engine = open_engine(f"sqlite:///{tmp_path}/store.db")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE notes (n INTEGER)"))
    store = Store(engine, queue_size=50, observe=lambda requests, seconds: commits.append(requests))
    store.start()
    yield store
    store.close()


def note(n: int) -> object:
    return lambda connection: connection.execute(text(f"INSERT INTO notes VALUES ({n})")) and n


def notes(store: Store) -> list[int]:
    with store.reading() as connection:
        return list(connection.scalars(text("SELECT n FROM notes ORDER BY n")))


def hold(store: Store) -> threading.Event:
    """Keep the writer busy until the event is set; returns when it is."""
    begun, go_on = threading.Event(), threading.Event()

    def wait(connection: Connection) -> None:
        begun.set()
        assert go_on.wait(10)

    store.submit(wait)
    assert begun.wait(10)
    return go_on


def test_a_store_that_closes_waits_for_its_readers(store: Store) -> None:
    """Handed back after the pool's end, a connection would never be closed."""
    begun, go_on = threading.Event(), threading.Event()

    def read() -> None:
        with store.reading() as connection:
            connection.execute(text("SELECT 1"))
            begun.set()
            assert go_on.wait(10)

    reader, pool = threading.Thread(target=read), cast(QueuePool, store.engine.pool)
    reader.start()
    assert begun.wait(10)
    threading.Timer(0.2, go_on.set).start()
    store.close()
    reader.join()
    assert pool.checkedin() == 0, "all its connections are closed"


def test_work_that_fails_once_and_is_repeated_answers_what_the_repetition_gave(store: Store) -> None:
    """As after a deadlock between two processes, when each piece of work is tried again alone."""
    tries: list[int] = []

    def work(connection: Connection) -> int:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("not yet")
        return len(tries)

    waiter: Future[int] = Future()
    job = Job(work, waiter)
    assert job.claim()
    with store.engine.connect() as connection:
        with pytest.raises(JobFailed):
            job.run(connection)
        job.run(connection)
    job.tell()
    assert waiter.result(0) == 2


def test_what_waits_together_is_committed_together(store: Store, commits: list[int]) -> None:
    go_on = hold(store)
    waiting = [store.submit(note(n)) for n in range(20)]
    go_on.set()
    assert [future.result(10) for future in waiting] == list(range(20))
    assert commits == [1, 20]
    assert notes(store) == list(range(20))


def test_work_that_fails_is_undone_alone_and_its_neighbours_are_stored(store: Store) -> None:
    def fails(connection: Connection) -> None:
        connection.execute(text("INSERT INTO notes VALUES (99)"))
        raise NotFound.run("radio-7")

    go_on = hold(store)
    before, failing, after = store.submit(note(1)), store.submit(fails), store.submit(note(2))
    go_on.set()
    assert (before.result(10), after.result(10)) == (1, 2)
    with pytest.raises(NotFound, match="radio-7"):
        failing.result(10)
    assert notes(store) == [1, 2]


def test_a_full_disk_refuses_the_group_and_stores_nothing_of_it(store: Store) -> None:
    def fills(connection: Connection) -> None:
        connection.execute(text("INSERT INTO notes VALUES (5)"))
        connection.execute(text("PRAGMA max_page_count = 3"))
        connection.execute(text("CREATE TABLE big AS SELECT zeroblob(100000)"))

    with pytest.raises(StoreUnavailable, match="full"):
        store.write(fills)
    assert notes(store) == []
    assert store.is_alive


def test_too_many_waiting_requests_are_refused_at_once(store: Store) -> None:
    go_on = hold(store)
    waiting = [store.submit(note(n)) for n in range(50)]
    with pytest.raises(StoreUnavailable, match="50 requests wait"):
        store.submit(note(50))
    go_on.set()
    assert [future.result(10) for future in waiting] == list(range(50))


def test_closing_commits_what_waits_and_refuses_what_comes_after(store: Store) -> None:
    go_on = hold(store)
    waiting = store.submit(note(1))
    closing = threading.Thread(target=store.close)
    closing.start()
    go_on.set()
    closing.join(10)
    assert waiting.result(10) == 1
    assert not store.is_alive
    with pytest.raises(StoreUnavailable, match="ended"):
        store.submit(note(2))


def test_a_request_that_nobody_waits_for_any_more_is_not_carried_out(store: Store) -> None:
    go_on = hold(store)
    waiting = store.submit(note(1))
    assert waiting.cancel()
    go_on.set()
    store.write(note(2))
    assert notes(store) == [2]


def test_an_event_loop_has_what_it_asked_for_after_the_commit(store: Store, commits: list[int]) -> None:
    def fails(connection: Connection) -> None:
        raise NotFound.run("radio-7")

    async def ask() -> list[object]:
        go_on = await asyncio.to_thread(hold, store)
        asked = [asyncio.create_task(store.commit(work)) for work in (note(1), fails, note(2), note(3))]
        await asyncio.sleep(0)
        asked[3].cancel()
        go_on.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    first, failed, second, cancelled = asyncio.run(ask())
    assert (first, second) == (1, 2)
    assert isinstance(failed, NotFound)
    assert isinstance(cancelled, asyncio.CancelledError)
    assert commits[0] == 1
    assert notes(store) == [1, 2]


def test_an_event_loop_that_ended_keeps_nobody_else_waiting(store: Store) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work(connection: Connection) -> None:
        begun.set()
        assert go_on.wait(10)

    async def ask_and_leave() -> None:
        asked = asyncio.ensure_future(store.commit(work))
        assert await asyncio.to_thread(begun.wait, 10)
        assert not asked.done()

    asyncio.run(ask_and_leave())
    go_on.set()
    assert store.submit(note(2)).result(10) == 2


def test_work_that_stops_an_iteration_keeps_nobody_else_waiting(store: Store) -> None:
    async def ask() -> list[object]:
        go_on = await asyncio.to_thread(hold, store)
        asked = [
            asyncio.create_task(store.commit(work)) for work in (lambda connection: next(iter(())), note(1))
        ]
        await asyncio.sleep(0)
        go_on.set()
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)

    stopped, noted = asyncio.run(ask())
    assert isinstance(stopped, RuntimeError)
    assert isinstance(stopped.__cause__, StopIteration)
    assert noted == 1
