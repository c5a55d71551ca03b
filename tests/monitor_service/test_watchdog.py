"""The watchdog: what changes by time alone, and what a diverged run is told."""

import time
from collections.abc import Callable
from typing import Any

from monitor_service.watchdog import look_once

Build = Callable[..., dict[str, Any]]


def look(served: Any) -> None:
    look_once(served.monitor.store, served.monitor.clock(), served.monitor.settings)


def test_an_order_that_nobody_takes_lapses(monitor: Any, clock: Any) -> None:
    wish = {"kind": "stop", "reason": "enough", "valid_for_s": 10}
    monitor.post("/api/v1/runs/demo/commands", json=wish)
    clock.advance(9)
    look(monitor)
    assert monitor.tell("/commands")["items"][0]["state"] == "pending"
    clock.advance(1)
    look(monitor)
    assert monitor.tell("/commands")["items"][0]["state"] == "expired"


def test_a_run_that_answers_without_steps_stalls(monitor: Any, batch: Build, clock: Any) -> None:
    monitor.send(batch(1, [1, 2], loss=[1.0, 1.0]))
    for seq in range(2, 8):
        clock.advance(20)
        monitor.send(batch(seq))
        look(monitor)
    assert monitor.tell("/health")["status"] == "healthy"
    clock.advance(1)
    look(monitor)
    assert monitor.tell("/health")["status"] == "stalled"
    assert "no new step since 2026-03-01 12:00:00 UTC" in monitor.tell("/health")["reasons"][0]


def test_the_monitors_own_absence_is_no_silence_of_the_run(monitor: Any, batch: Build, clock: Any) -> None:
    monitor.send(batch(1, [1], loss=[1.0]))
    clock.advance(7200)  # the monitor was away
    back_since = clock()
    for advance_s, status in ((2, "healthy"), (43, "healthy"), (1, "lost")):
        clock.advance(advance_s)
        look_once(monitor.monitor.store, clock(), monitor.monitor.settings, back_since)
        assert monitor.tell("/health")["status"] == status


def test_a_finished_run_is_not_looked_at_again(monitor: Any, batch: Build, clock: Any) -> None:
    monitor.send(batch(1, events=[{"type": "run_ended", "step": 1, "status": "finished"}]))
    clock.advance(10_000)
    look(monitor)
    assert [move["to_status"] for move in monitor.tell()["transitions"]] == ["finished"]


def test_a_run_that_stays_diverged_is_sent_back_again_after_the_cooldown_until_the_budget_is_used(
    serve: Any, batch: Build, clock: Any
) -> None:
    monitor = serve(policy="act", policy_cooldown_s=100, policy_budget=2)
    monitor.register()
    for seq in range(1, 8):
        steps = range(seq * 5, seq * 5 + 5)
        monitor.send(batch(seq, steps, loss=["NaN"] * 5))
        for command in monitor.tell("/health")["open_commands"]:
            refusal = {"type": "command", "step": 1, "command": command["id"], "state": "refused"}
            monitor.send(batch(seq, session="s1/answers", events=[refusal]))
        clock.advance(40)
    assert len(monitor.tell("/commands")["items"]) == 2
    assert any("budget of 2" in reason for reason in monitor.tell("/health")["reasons"])
    assert [move["to_status"] for move in monitor.tell()["transitions"]] == ["diverged"]


def test_a_policy_that_suggests_says_so_and_orders_nothing(monitor: Any, batch: Build) -> None:
    monitor.send(batch(1, range(5), loss=["NaN"] * 5))
    assert any("suggested: roll back" in reason for reason in monitor.tell()["transitions"][0]["reasons"])
    assert monitor.tell("/commands")["items"] == []


def test_the_watchdog_looks_by_itself(serve: Any, batch: Build, clock: Any) -> None:
    monitor = serve(watchdog_interval_s=0.02)
    monitor.register()
    clock.advance(46)
    deadline = time.monotonic() + 10
    while monitor.tell("/health")["status"] != "lost":
        assert time.monotonic() < deadline, "nobody noticed the silence"
        time.sleep(0.02)


def test_an_order_that_was_accepted_and_never_ended_lapses_in_the_end(
    monitor: Any, batch: Build, clock: Any
) -> None:
    wish = {"kind": "roll_back", "reason": "enough", "valid_for_s": 10}
    order = monitor.post("/api/v1/runs/demo/commands", json=wish).json()["id"]
    accepted = {"type": "command", "step": 1, "command": order, "state": "accepted"}
    monitor.send(batch(1, [0], loss=[1.0], events=[accepted]))
    clock.advance(10 + 599)
    look(monitor)
    assert monitor.tell("/commands")["items"][0]["state"] == "accepted"
    clock.advance(1)
    look(monitor)
    assert monitor.tell("/commands")["items"][0]["state"] == "expired"
