"""Two monitor processes on one database, and a run that diverges: one change of status, one command."""

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from shared.base import utc_now
from shared.exchange import Batch, Columns, RunSpec

pytestmark = pytest.mark.slow

RUN = "unguarded"
ACTING = {
    "TRAINHEALTH_POLICY": "act",
    "TRAINHEALTH_WATCHDOG_INTERVAL_S": "0.02",
    "TRAINHEALTH_LOST_AFTER_S": "1",
}


def batch(seq: int, steps: range, loss: float) -> bytes:
    """What a trainer without guards would send."""
    columns = Columns(
        step=list(steps), time=[1.7e9 + step for step in steps], series={"loss": [loss] * len(steps)}
    )
    return Batch(session="one-life", seq=seq, attempt=1, columns=columns).model_dump_json().encode()


def at_once(*work: Callable[[], Any]) -> None:
    """Start all in the same moment, and wait for all."""
    ready = threading.Barrier(len(work))
    threads = [threading.Thread(target=lambda one=one: (ready.wait(), one())) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def moves(monitor: Any) -> list[tuple[str, str]]:
    return [(move["from_status"], move["to_status"]) for move in monitor.tell(run=RUN)["transitions"]]


def post(monitor: Any, body: bytes) -> dict[str, Any]:
    answer = httpx.post(
        f"{monitor.url}/api/v1/runs/{RUN}/exchange",
        content=body,
        headers={"Content-Type": "application/json"},
        timeout=30,
    )
    answer.raise_for_status()
    return answer.json()


def test_two_monitors_that_see_the_same_divergence_order_one_rollback(house: Any, until: Any) -> None:
    one, two = house.monitor(**ACTING), house.monitor(**ACTING)
    spec = RunSpec(started_at=utc_now()).model_dump(mode="json")
    httpx.put(f"{one.url}/api/v1/runs/{RUN}", json=spec, timeout=30).raise_for_status()
    post(one, batch(1, range(10), 1.0))
    nans = [batch(2 + n, range(10 + 5 * n, 15 + 5 * n), float("nan")) for n in range(6)]
    at_once(*(lambda m=m, b=b: post(m, b) for b in nans for m in (one, two)))  # each batch reaches both
    assert moves(one)[0] == ("healthy", "diverged")
    until(lambda: moves(two)[-1][1] == "lost", "both watchdogs have looked at the silent run")
    time.sleep(0.5)  # and go on looking
    assert moves(one) == moves(two) == [("healthy", "diverged"), ("diverged", "lost")]
    (command,) = two.tell("/commands", RUN)["items"]
    assert (command["kind"], command["issued_by"]) == ("roll_back", "policy")
    assert post(one, batch(8, range(0), 0.0))["commands"] == post(two, batch(9, range(0), 0.0))["commands"]


def test_what_only_the_passing_of_time_reveals_is_one_transition_too(house: Any, until: Any) -> None:
    one, two = house.monitor(**ACTING), house.monitor(**ACTING)
    spec = RunSpec(started_at=utc_now()).model_dump(mode="json")
    httpx.put(f"{one.url}/api/v1/runs/{RUN}", json=spec, timeout=30).raise_for_status()
    for seq in range(1, 4):
        post(one, batch(seq, range(seq, seq + 1), 1.0))
        until(lambda: moves(two) and moves(two)[-1][1] == "lost", "the silence is noticed")
    lost_and_found = [("healthy", "lost"), ("lost", "healthy")]
    assert moves(one) == moves(two) == [*lost_and_found, *lost_and_found, ("healthy", "lost")]
