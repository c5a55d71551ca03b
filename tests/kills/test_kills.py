"""SIGKILL at random moments under load: what was acknowledged is there once, and nothing is there twice.

Seeded; ``KILL_SEED`` chooses other moments, ``KILL_FACTOR=10`` ten times as many.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kills.lived import Api, Lives, Sender, check, events_of, kills

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def senders(port: int, count: int = 3) -> list[Sender]:
    started = [Sender(port, f"run-{number}") for number in range(count)]
    for one in started:
        one.start()
    return started


def under_fire(monitor: Lives, api: Api, moments: list[float]) -> None:
    """Kill the monitor at each of these moments after it answered, and start it again."""
    for moment in moments:
        api.insist("GET", "/runs")
        time.sleep(moment)
        monitor.kill()
        monitor.start()


def test_a_monitor_on_sqlite_killed_70_times_has_every_acknowledged_batch_once(
    lives: Callable[..., Lives], api: Api, port: int, tmp_path: Path
) -> None:
    monitor = lives("monitor", str(port), f"sqlite:///{tmp_path}/monitor.db")
    monitor.start()
    sending = senders(port)
    under_fire(monitor, api, kills(70))
    for sender in sending:
        sender.finish()
        check(sender, api)


def test_a_monitor_on_postgresql_killed_40_times_has_every_acknowledged_batch_once(
    lives: Callable[..., Lives], api: Api, port: int, own_postgres: Any
) -> None:
    monitor = lives("monitor", str(port), own_postgres.url("postgres"))
    monitor.start()
    sending = senders(port)
    under_fire(monitor, api, kills(40))
    for sender in sending:
        sender.finish()
        check(sender, api)


def test_a_database_killed_40_times_has_every_acknowledged_batch_once(
    lives: Callable[..., Lives], api: Api, port: int, own_postgres: Any
) -> None:
    monitor = lives("monitor", str(port), own_postgres.url("postgres"))
    monitor.start()
    sending = senders(port)
    for moment in kills(40):
        api.insist("GET", "/runs")
        time.sleep(moment)
        own_postgres.kill()
        own_postgres.start()
    for sender in sending:
        sender.finish()
        check(sender, api)


def test_a_trainer_killed_50_times_leaves_no_batch_behind_and_sends_none_twice(
    lives: Callable[..., Lives], api: Api, port: int, tmp_path: Path
) -> None:
    monitor = lives("monitor", str(port), f"sqlite:///{tmp_path}/monitor.db")
    trainer = lives("trainer", f"http://127.0.0.1:{port}", str(tmp_path / "spool"))
    monitor.start()
    api.insist("GET", "/runs")
    moments, stored = kills(50), {}
    for attempt, moment in enumerate(moments, 1):
        trainer.start(attempt)
        time.sleep(0.05 + moment)
        if attempt > 1:
            stored[attempt] = newest(api, attempt)  # what the monitor has acknowledged so far
        trainer.kill()
    trainer.start(len(moments) + 1)  # delivers what the others left behind
    wait_until_all_came(api, len(moments) + 1)
    trainer.kill()
    for attempt in range(1, len(moments) + 1):
        told = api.insist("GET", f"/runs/kills/series?name=loss&attempt={attempt}")["series"]["loss"]["step"]
        assert told == list(range(len(told))), f"a gap or a repeat in life {attempt}"
        assert len(told) > stored.get(attempt, -1)
    told = [event["data"]["message"] for event in events_of(api, "kills")]
    assert len(told) == len(set(told))
    received = api.insist("GET", "/runs/kills")["findings"]
    assert received == len(told)


def newest(api: Api, attempt: int) -> int:
    """The newest step of an attempt at the monitor; -1 while there is none."""
    found = api.ask("GET", f"/runs/kills/series?name=loss&attempt={attempt}")
    steps = found[1]["series"]["loss"]["step"] if found and found[0] == 200 else []
    return steps[-1] if steps else -1


def wait_until_all_came(api: Api, life: int) -> None:
    """The last life's own steps come after everything of the lives before it."""
    deadline = time.monotonic() + 60
    while newest(api, life) < 0:
        assert time.monotonic() < deadline, "the spool was not delivered"
        time.sleep(0.05)
