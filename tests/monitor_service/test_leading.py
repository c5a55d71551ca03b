"""Of two monitor processes on one PostgreSQL one tells the runs' series; if it is killed, the other does."""

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("url", ["postgresql"], indirect=True)]
Build = Callable[..., dict[str, Any]]
LEASE_S = 5.0
STEPS = 'trainhealth_steps_total{project="default",run="demo"}'


def scrape(monitor: Any) -> tuple[bool, float | None]:
    """Whether it says that it leads, and the run's steps if it tells them."""
    told = {}
    for line in httpx.get(f"{monitor.url}/metrics", timeout=30).text.splitlines():
        name, _, value = line.rpartition(" ")
        told[name] = value
    steps = told.get(STEPS)
    return told["trainhealth_metrics_leader"] == "1.0", None if steps is None else float(steps)


def send(monitor: Any, body: dict[str, Any]) -> None:
    monitor.ask("POST", "/runs/demo/exchange", json=body)


def test_a_killed_leader_is_followed_within_its_lease_and_no_counter_falls(
    program: Any, batch: Build, until: Any
) -> None:
    both = [program(TRAINHEALTH_METRICS_LEASE_S=f"{LEASE_S}") for _ in range(2)]
    both[0].ask("PUT", "/runs/demo", json={"started_at": "2026-03-01T12:00:00Z"})
    until(lambda: sum(scrape(one)[0] for one in both) == 1, "one leads")
    leader, other = both if scrape(both[0])[0] else both[::-1]
    told = []
    for seq in range(1, 6):  # trainers send to whichever they reach
        send(both[seq % 2], batch(seq, [seq], loss=[1.0]))
        assert scrape(other) == (False, None)
        told.append(scrape(leader)[1])
    leader.process.kill()
    killed = time.monotonic()
    leader.process.wait(20)
    for seq in range(6, 500):
        send(other, batch(seq, [seq], loss=[1.0]))
        leads, steps = scrape(other)
        assert leads == (steps is not None)
        if leads:
            break
        time.sleep(0.05)
    took = time.monotonic() - killed
    told += [steps, scrape(other)[1]]
    assert told == sorted(told, key=float)
    assert told[:5] == [1, 2, 3, 4, 5]
    assert steps == seq  # all that was acknowledged, by the dead monitor or the living
    assert took < LEASE_S / 3 + LEASE_S + 2.0  # the other asks three times in a lease; and a busy machine
