"""Orders at one monitor wake replies that another holds: at once on PostgreSQL, and by looking without it."""

import threading
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import httpx
import psycopg
import pytest

from monitor_service import notices

pytestmark = pytest.mark.parametrize("url", ["postgresql"], indirect=True)
Build = Callable[..., dict[str, Any]]
HOLD_S = 10.0
SOON_S = 1.0
"""Far above what it takes (some milliseconds), far below what anything but a notice would take here."""

EXCHANGE = "/runs/demo/exchange"
ONLY_NOTICES = {"TRAINHEALTH_COMMAND_POLL_S": "3600"}


class Held(threading.Thread):
    """A trainer of which a monitor holds the reply."""

    def __init__(self, monitor: Any, body: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._monitor, self._body = monitor, {**body, "hold_s": HOLD_S}
        self.commands: list[dict[str, Any]] = []
        self.told_at = 0.0
        self.start()

    def run(self) -> None:
        self.commands = self._monitor.ask("POST", EXCHANGE, json=self._body)["commands"]
        self.told_at = time.perf_counter()


def number(monitor: Any, name: str) -> float:
    lines = httpx.get(f"{monitor.url}/metrics", timeout=30).text.splitlines()
    (line,) = [line for line in lines if line.startswith(f"trainhealth_{name} ")]
    return float(line.rpartition(" ")[2])


def wake(orders: Any, holds: Any, body: dict[str, Any], until: Any) -> float:
    """Seconds from an order at one monitor to the reply of the other, which held it before."""
    held = Held(holds, body)
    until(lambda: number(holds, 'waiting_clients{channel="longpoll"}') == 1, "the reply is held")
    began = time.perf_counter()
    command = orders.ask(
        "POST", "/runs/demo/commands", json={"kind": "stop", "reason": "r", "issued_by": "p"}
    )
    held.join(2 * HOLD_S)
    assert [one["id"] for one in held.commands] == [command["id"]]
    update = {"type": "command", "step": 1, "command": command["id"], "state": "refused"}
    holds.ask("POST", EXCHANGE, json={**body, "seq": body["seq"] + 1, "events": [update]})
    return held.told_at - began


@pytest.fixture
def two(program: Any, until: Any) -> tuple[Any, Any]:
    """Two monitor processes that listen, and the run ``demo``."""
    one, other = program(**ONLY_NOTICES), program(**ONLY_NOTICES)
    until(lambda: number(one, "orders_heard") and number(other, "orders_heard"), "both listen")
    one.ask("PUT", "/runs/demo", json={"started_at": "2026-03-01T12:00:00Z"})
    return one, other


LISTENERS = (
    " FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'trainhealth orders'"
)


def listeners(url: str) -> set[int]:
    """The connections that listen."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        return {pid for (pid,) in connection.execute(f"SELECT pid{LISTENERS}")}


def end_listeners(url: str) -> set[int]:
    """Break the connections that listen; which there were."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        ended = connection.execute(f"SELECT pid, pg_terminate_backend(pid){LISTENERS}")
        return {pid for pid, _ in ended}


def test_an_order_at_one_process_wakes_the_reply_that_another_holds(
    two: Any, batch: Build, until: Any
) -> None:
    took = [wake(two[0], two[1], batch(seq), until) for seq in range(1, 10, 2)]
    took += [wake(two[1], two[0], batch(seq), until) for seq in range(11, 20, 2)]
    assert median(took) < SOON_S


def test_after_its_connection_was_cut_a_monitor_listens_again(
    two: Any, batch: Build, until: Any, url: str
) -> None:
    for _ in range(2):
        ended = end_listeners(url)
        assert len(ended) == 2
        until(lambda: len(listeners(url) - ended) == 2, "both have connected anew")  # noqa: B023
    until(lambda: number(two[0], "orders_heard") and number(two[1], "orders_heard"), "both listen again")
    assert wake(two[0], two[1], batch(1), until) < HOLD_S / 2


def test_while_it_does_not_hear_it_looks(
    serve: Any,
    batch: Build,
    until: Any,
    url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notices, "AGAIN_S", 3600.0)  # who loses the connection does not get it back
    one, two = serve(command_poll_s=0.05), serve(command_poll_s=0.05)
    ears = one.monitor.ear, two.monitor.ear
    until(lambda: all(ear.is_listening for ear in ears), "both listen")
    one.register()
    assert len(end_listeners(url)) == 2
    until(lambda: not any(ear.is_listening for ear in ears), "both know that they hear nothing")
    assert "orders are looked for, not heard of" in caplog.text
    held = two.start_post("/api/v1/runs/demo/exchange", json=batch(1, hold_s=HOLD_S))
    until(lambda: two.monitor.bell.num_listening, "the reply is held")
    one.post("/api/v1/runs/demo/commands", json={"kind": "stop", "reason": "r", "issued_by": "p"})
    (command,) = held.result(HOLD_S / 2).json()["commands"]
    assert command["kind"] == "stop"


def test_an_order_that_is_undone_is_not_heard_of(serve: Any, until: Any, url: str) -> None:
    heard: list[str] = []
    monitor = serve()
    until(lambda: monitor.monitor.ear.is_listening, "it listens")
    monitor.monitor.bell.ring = heard.append
    with monitor.monitor.store.engine.connect() as connection:
        notices.tell(connection, "undone")
        connection.rollback()
        notices.tell(connection, "done")
        connection.commit()
    until(lambda: heard, "the notice comes")
    assert heard == ["done"]
