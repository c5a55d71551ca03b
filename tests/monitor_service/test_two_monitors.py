"""Two monitors on one database: one failure, one transition, one command."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

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
