"""A lease: one holder at a time, and a holder that is gone does not keep it."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from monitor_service import lease
from monitor_service.store import Store, open_engine

pytestmark = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def stores(url: str) -> Iterator[list[Store]]:
    """Three processes' views of one database."""
    opened = [
        Store(open_engine(url), queue_size=10, observe=lambda requests, seconds: None) for _ in range(3)
    ]
    for store in opened:
        store.start()
    yield opened
    for store in opened:
        store.close()


def hold(store: Store, holder: str, now: datetime = NOON) -> bool:
    return store.write(partial(lease.hold, name="metrics", holder=holder, now=now, length=MINUTE))


def test_of_many_who_ask_at_once_one_gets_it(stores: list[Store]) -> None:
    won: list[str] = []

    def ask(number: int) -> None:
        if hold(stores[number], f"worker {number}"):
            won.append(f"worker {number}")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(won) == 1
    with stores[0].reading() as connection:
        assert lease.holder_of(connection, "metrics", NOON) == won[0]


def test_the_holder_prolongs_it_and_another_gets_it_when_it_has_run_out(stores: list[Store]) -> None:
    one, two, _ = stores
    assert hold(one, "one")
    assert not hold(two, "two", NOON + MINUTE / 2)
    assert hold(one, "one", NOON + MINUTE / 2)
    assert not hold(two, "two", NOON + MINUTE)
    assert hold(two, "two", NOON + MINUTE * 1.5)
    assert not hold(one, "one", NOON + MINUTE * 1.6)


def test_who_lets_go_leaves_it_to_others_and_only_the_holder_can(stores: list[Store]) -> None:
    one, two, _ = stores
    assert hold(one, "one")
    two.write(partial(lease.let_go, name="metrics", holder="two"))
    assert not hold(two, "two")
    one.write(partial(lease.let_go, name="metrics", holder="one"))
    assert hold(two, "two")


def test_a_clock_that_was_put_back_does_not_hold_it_for_an_hour(stores: list[Store]) -> None:
    assert hold(stores[0], "one", NOON + timedelta(hours=1))
    assert hold(stores[1], "two", NOON)
