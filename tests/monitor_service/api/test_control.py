"""Commands: ordered once, delivered at once, repeated until answered, with every change on record."""

import time
from collections.abc import Callable
from typing import Any

import pytest

Build = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
COMMANDS = "/api/v1/runs/demo/commands"
EXCHANGE = "/api/v1/runs/demo/exchange"
ROLL_BACK = {"kind": "roll_back", "reason": "maps look wrong", "issued_by": "ana"}


def order(monitor: Any, **wish: Any) -> dict[str, Any]:
    answer = monitor.post(COMMANDS, json={**ROLL_BACK, **wish})
    assert answer.status_code == 201, answer.text
    command: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"{COMMANDS}/{command['id']}"
    return command


def says(command: dict[str, Any], state: str, message: str = "") -> dict[str, Any]:
    return {"type": "command", "step": 9, "command": command["id"], "state": state, "message": message}


def life(monitor: Any, command: dict[str, Any]) -> list[str]:
    return [change["state"] for change in monitor.tell(f"/commands/{command['id']}")["history"]]


def test_a_command_comes_with_every_reply_until_the_trainer_answers(monitor: Any, batch: Build) -> None:
    command = order(monitor, to_step=40)
    for seq in (1, 2):
        (got,) = monitor.send(batch(seq)).json()["commands"]
        assert (got["id"], got["to_step"], got["attempt"]) == (command["id"], 40, 1)
    assert monitor.tell("/commands")["items"][0]["state"] == "delivered"
    assert monitor.send(batch(3, events=[says(command, "accepted")])).json()["commands"] == []
    assert monitor.tell("/health")["status"] == "recovering"
    assert monitor.send(batch(4, events=[says(command, "succeeded", "at step 40")])).json()["commands"] == []
    assert life(monitor, command) == ["pending", "delivered", "accepted", "succeeded"]
    assert monitor.tell("/health")["open_commands"] == []
    assert monitor.tell("/health")["status"] == "healthy"


@pytest.mark.parametrize("state", ["failed", "refused"])
def test_a_command_may_end_badly(monitor: Any, batch: Build, state: str) -> None:
    command = order(monitor)
    monitor.send(batch(1))
    monitor.send(batch(2, events=[says(command, state, "no good checkpoint")]))
    told = monitor.tell(f"/commands/{command['id']}")
    assert told["state"] == state
    assert told["history"][-1]["message"] == "no good checkpoint"


def test_a_second_order_of_the_same_kind_waits_for_the_first(monitor: Any, batch: Build) -> None:
    command = order(monitor)
    again = monitor.post(COMMANDS, json=ROLL_BACK)
    assert again.status_code == 409
    assert command["id"] in again.json()["detail"]
    order(monitor, kind="save_checkpoint")
    monitor.send(batch(1, events=[says(command, "accepted"), says(command, "succeeded")]))
    order(monitor)


def test_a_bad_checkpoint_is_no_place_to_go_back_to(monitor: Any, batch: Build) -> None:
    """Unless a good one of another attempt is at that step, too."""
    bad = {
        "type": "checkpoint",
        "checkpoint": "step-40-1",
        "step": 40,
        "state": "bad",
        "failed_check": "probe",
    }
    monitor.send(batch(1, events=[bad]))
    refused = monitor.post(COMMANDS, json={**ROLL_BACK, "to_step": 40})
    assert refused.status_code == 409
    assert "step-40-1 is bad (it fails probe)" in refused.json()["detail"]
    assert "no good one is known before it" in refused.json()["detail"]
    assert monitor.tell("/commands")["items"] == []
    monitor.send(batch(2, events=[{**bad, "checkpoint": "step-40-2", "state": "good", "failed_check": None}]))
    order(monitor, to_step=40)


def test_a_run_that_is_over_takes_no_orders(monitor: Any, batch: Build) -> None:
    command = order(monitor)
    ended = {"type": "run_ended", "step": 9, "status": "finished", "message": "all done"}
    monitor.send(batch(1, events=[ended]))
    refused = monitor.post(COMMANDS, json=ROLL_BACK)
    assert refused.status_code == 409
    assert "finished" in refused.json()["detail"]
    assert life(monitor, command) == ["pending", "expired"]


def test_a_command_of_a_run_that_is_over_is_not_opened_again_by_late_news(monitor: Any, batch: Build) -> None:
    command = order(monitor)
    ended = {"type": "run_ended", "step": 9, "status": "finished", "message": "all done"}
    monitor.send(batch(2, events=[ended]))
    monitor.send(batch(1, events=[says(command, "accepted")]))
    assert monitor.tell("/health")["open_commands"] == []
    assert monitor.tell(f"/commands/{command['id']}")["state"] == "expired"


def test_a_stop_that_ends_the_run_succeeds_even_if_that_is_said_last(monitor: Any, batch: Build) -> None:
    command = order(monitor, kind="stop")
    monitor.send(batch(1, events=[says(command, "accepted")]))
    ended = {"type": "run_ended", "step": 9, "status": "stopped", "message": ""}
    monitor.send(batch(2, events=[ended, says(command, "succeeded")]))
    assert monitor.tell(f"/commands/{command['id']}")["state"] == "succeeded"
    assert monitor.tell("/health")["status"] == "stopped"


def test_an_order_lapses_after_its_time_and_is_delivered_no_more(
    monitor: Any, batch: Build, clock: Any
) -> None:
    command = order(monitor, valid_for_s=60)
    clock.advance(61)
    assert monitor.send(batch(1)).json()["commands"] == []
    order(monitor)
    assert life(monitor, command) == ["pending", "expired"]


def test_a_trainer_that_accepted_in_time_is_believed_after_the_order_lapsed(
    monitor: Any, batch: Build, clock: Any
) -> None:
    command = order(monitor, valid_for_s=60)
    monitor.send(batch(1))
    clock.advance(61)
    order(monitor, kind="save_checkpoint")  # looks for lapsed orders
    monitor.send(batch(2, events=[says(command, "succeeded")]))
    assert life(monitor, command)[-1] == "succeeded"
    monitor.send(batch(3, events=[says(command, "accepted")]))
    assert life(monitor, command)[-1] == "succeeded"


def test_a_rollback_that_a_crash_cut_short_is_closed_when_the_trainer_is_back(
    monitor: Any, batch: Build
) -> None:
    command = order(monitor)
    monitor.send(batch(1, [1], loss=[1.0], events=[says(command, "accepted")]))
    begins = {"type": "attempt_started", "step": 1, "attempt": 2, "reason": "resume"}
    monitor.send(batch(1, attempt=2, session="s2", events=[begins]))
    assert life(monitor, command) == ["pending", "accepted", "expired"]
    assert monitor.tell("/health")["status"] == "healthy"
    order(monitor)


def test_news_of_an_unknown_command_changes_nothing(monitor: Any, batch: Build) -> None:
    assert monitor.send(batch(1, events=[says({"id": "c9"}, "succeeded")])).status_code == 200
    assert monitor.tell("/commands")["items"] == []


def test_a_held_reply_wakes_at_once_when_a_command_is_ordered(serve: Any, batch: Build) -> None:
    monitor = serve(command_poll_s=3600.0)  # so that nothing but the order itself wakes it
    monitor.register()
    waited, seqs = [], iter(range(1, 7))

    def hold() -> Any:
        """A reply that waits. PostgreSQL's notice of the order before may be late, and end one more."""
        reply = monitor.start_post(EXCHANGE, json=batch(next(seqs), hold_s=10))
        time.sleep(0.1)
        return hold() if reply.done() else reply

    for kind in ("roll_back", "stop", "save_checkpoint"):
        reply = hold()
        ordered = time.perf_counter()
        command = order(monitor, kind=kind)
        got = reply.result(5).json()["commands"]
        waited.append(time.perf_counter() - ordered)
        assert command["id"] in {one["id"] for one in got}
        assert monitor.tell(f"/commands/{command['id']}")["state"] == "delivered"
    assert min(waited) < 0.2  # the least: a busy machine may stop this process for longer


def test_a_held_reply_wakes_when_another_monitor_takes_the_order(
    serve: Any, monitor: Any, batch: Build
) -> None:
    other = serve()
    reply = monitor.start_post(EXCHANGE, json=batch(1, hold_s=10))
    time.sleep(0.2)
    ordered = time.perf_counter()
    order(other)
    assert len(reply.result(5).json()["commands"]) == 1
    assert time.perf_counter() - ordered < 1


def test_a_reply_is_held_no_longer_than_the_server_allows(serve: Any, monitor: Any, batch: Build) -> None:
    short = serve(max_hold_s=0.2)
    begun = time.perf_counter()
    assert short.send(batch(1, hold_s=30)).json()["commands"] == []
    assert 0.15 < time.perf_counter() - begun < 2


def test_a_command_that_went_out_before_does_not_end_the_hold(monitor: Any, batch: Build) -> None:
    order(monitor)
    begun = time.perf_counter()
    assert monitor.send(batch(1, hold_s=10)).json()["commands"]
    assert time.perf_counter() - begun < 2  # it went out for the first time
    begun = time.perf_counter()
    assert monitor.send(batch(2, hold_s=0.5)).json()["commands"]
    assert time.perf_counter() - begun > 0.45


def test_nobody_is_held_any_more_once_the_monitor_ends(monitor: Any, batch: Build) -> None:
    held = monitor.start_post(EXCHANGE, json=batch(1, hold_s=10))
    monitor.monitor.bell.close()
    begun = time.perf_counter()
    assert monitor.send(batch(2, hold_s=10)).status_code == 200
    assert held.result(5).status_code == 200
    assert time.perf_counter() - begun < 4


def test_a_trainer_that_missed_the_reply_gets_the_command_with_its_repeat(monitor: Any, batch: Build) -> None:
    order(monitor)
    lost = batch(1, hold_s=10)
    monitor.send(lost)
    begun = time.perf_counter()
    answer = monitor.send(lost).json()
    assert time.perf_counter() - begun < 2
    assert answer["duplicate"]
    assert len(answer["commands"]) == 1
