"""Two monitors on one database: one failure, one transition, one command."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest

from monitor_service import rulebook, tallies
from monitor_service.store import open_engine, writing
from monitor_service.watchdog import look_once

Build = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
DIVERGED = ["NaN"] * 5


def look(served: Any) -> None:
    look_once(served.monitor.store, served.monitor.clock(), served.monitor.settings)


def together(*work: Callable[[], Any]) -> None:
    """Run all at once and wait for all."""
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)


def moves(served: Any) -> list[tuple[str, str]]:
    return [(move["from_status"], move["to_status"]) for move in served.tell()["transitions"]]


def test_one_divergence_makes_one_transition_and_one_rollback(serve: Any, batch: Build) -> None:
    one, two = serve(policy="act"), serve(policy="act")
    one.register()
    together(*[lambda s=s: s.send(batch(1, range(5), loss=DIVERGED)) for s in (one, two, one, two)])
    together(*[lambda s=s, n=n: s.send(batch(n, events=[])) for n, s in enumerate((one, two, one, two), 2)])
    together(lambda: look(one), lambda: look(two))
    assert moves(one) == [("healthy", "diverged")]
    (command,) = two.tell("/commands")["items"]
    assert (command["kind"], command["issued_by"]) == ("roll_back", "policy")


def test_one_silence_makes_one_transition_and_is_over_when_a_batch_comes(
    serve: Any, batch: Build, clock: Any
) -> None:
    one, two = serve(), serve()
    one.register()
    one.send(batch(1, [1], loss=[1.0]))
    clock.advance(46)
    together(*[lambda s=s: look(s) for s in (one, two) * 3])
    assert moves(one) == [("healthy", "lost")]
    two.send(batch(2, [2], loss=[1.0]))
    assert moves(one) == [("healthy", "lost"), ("lost", "healthy")]


def test_what_two_monitors_store_at_once_is_all_there(serve: Any, batch: Build) -> None:
    one, two = serve(), serve()
    one.register()

    def send(served: Any, seqs: range) -> None:
        for seq in seqs:
            assert served.send(batch(seq, [seq], loss=[float(seq)])).status_code == 200

    together(lambda: send(one, range(1, 31, 2)), lambda: send(two, range(2, 31, 2)))
    assert one.tell("/series?name=loss")["series"]["loss"]["step"] == list(range(1, 31))
    assert one.tell()["step"] == 30


def test_rules_and_alerts_that_lock_the_same_runs_at_once_are_never_refused(serve: Any, batch: Build) -> None:
    """Both hold several runs in one transaction; crosswise it would be a deadlock, and one of them a 503."""
    one, two = serve(), serve()
    names = [f"{letter}-{number}" for number in range(4) for letter in "zYx"]  # neither by age nor by locale
    for name in names:
        one.register(name, project="maps")
    answers: list[int] = []

    # FastAPI finishes a route with its first request, and not in two threads at once
    assert {one.put("/api/v1/projects/maps/rules").status_code, two.post("/api/v1/alerts").status_code} == {
        415
    }

    def choose() -> None:
        for number in range(12):
            wish = {"values": {"loss_risen_factor": 2 + number}, "reason": "try"}
            answers.append(one.put("/api/v1/projects/maps/rules", json=wish).status_code)

    def alarm() -> None:
        for number in range(12):
            told = [
                {
                    "status": "firing",
                    "labels": {"alertname": "x", "run": name, "action": "roll_back"},
                    "annotations": {},
                    "startsAt": "2026-03-01T12:00:00Z",
                    "fingerprint": f"{name}-{number}",
                }
                for name in reversed(names)
            ]
            body = {"version": "4", "alerts": told}
            answers.append(two.post("/api/v1/alerts", json=body).status_code)

    together(choose, alarm)
    assert answers == [200] * 24
    values = {name: two.tell("/rules", name)["values"]["loss_risen_factor"] for name in names}
    assert values == dict.fromkeys(names, 13.0)


def test_a_run_that_registers_while_its_rules_change_has_the_new_ones(serve: Any, url: str) -> None:
    """The change is under way in another process and not committed yet: neither sees the other's row."""
    if url.startswith("sqlite"):
        pytest.skip("SQLite lets one process write at a time")
    monitor, engine = serve(), open_engine(url)
    wish = rulebook.RulesRequest(values={"loss_risen_factor": 7.0}, reason="try")
    try:
        with writing(engine) as connection, connection.begin():
            rulebook.choose_for_project(connection, "maps", wish, monitor.monitor.clock())
            registering = ThreadPoolExecutor(1).submit(monitor.register, "young", project="maps")
            with pytest.raises(TimeoutError):
                registering.result(0.5)
        assert registering.result(20).status_code == 201
    finally:
        engine.dispose()
    assert monitor.tell("/rules", "young")["values"]["loss_risen_factor"] == 7.0


def test_commands_of_two_runs_that_leave_at_once_are_all_counted(serve: Any, batch: Build) -> None:
    served = serve()
    engine = served.monitor.store.engine
    for run in ("a", "b"):
        served.register(run)
        wish = {"kind": "stop", "reason": "r"}
        command = served.post(f"/api/v1/runs/{run}/commands", json=wish).json()["id"]
        assert served.delete(f"/api/v1/runs/{run}/commands/{command}?reason=r").status_code == 200
    with engine.connect() as connection:
        first, second = connection.exec_driver_sql("SELECT id FROM runs ORDER BY name").scalars()

    def keep_second() -> None:
        with writing(engine) as other, other.begin():
            tallies.keep(other, second)

    with ThreadPoolExecutor(1) as pool:
        with writing(engine) as one, one.begin():
            tallies.keep(one, first)
            done = pool.submit(keep_second)
            assert wait([done], 0.5).not_done  # it waits for the first to commit, on both databases
        done.result(20)
    with engine.connect() as connection:
        kept = connection.exec_driver_sql("SELECT kind, state, count FROM command_tallies").all()
    assert kept == [("stop", "cancelled", 2)]
