"""Orders that are sent again, and orders that are taken back."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from monitor_service import tokens
from monitor_service.store import writing
from monitor_service.tokens import Scope

Build = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
COMMANDS = "/api/v1/runs/demo/commands"
ROLL_BACK = {"kind": "roll_back", "reason": "maps look wrong", "issued_by": "ana"}
KEY = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}


def order(monitor: Any, **more: Any) -> Any:
    return monitor.post(COMMANDS, json=ROLL_BACK, **more)


def cancel(monitor: Any, command: str, **more: Any) -> Any:
    params = {"reason": "the wrong run", "cancelled_by": "ben"}
    return monitor.delete(f"{COMMANDS}/{command}", params=params, **more)


def says(command: str, state: str) -> dict[str, Any]:
    return {"type": "command", "step": 9, "command": command, "state": state}


def life(monitor: Any, command: str) -> list[str]:
    return [change["state"] for change in monitor.tell(f"/commands/{command}")["history"]]


def test_an_order_sent_again_with_its_key_is_the_same_command(monitor: Any, batch: Build) -> None:
    first = order(monitor, headers=KEY)
    assert first.status_code == 201
    monitor.send(batch(1))
    again = order(monitor, headers={"Idempotency-Key": f'"{KEY["Idempotency-Key"]}"'})  # quoted, as a string
    assert again.status_code == 200
    assert again.headers["location"] == first.headers["location"]
    assert (again.json()["id"], again.json()["state"]) == (first.json()["id"], "delivered")
    monitor.send(batch(2, events=[says(first.json()["id"], "succeeded")]))
    ended = {"type": "run_ended", "step": 9, "status": "finished"}
    monitor.send(batch(3, events=[ended]))
    assert order(monitor, headers=KEY).json()["state"] == "succeeded"  # kept as long as the run
    assert len(monitor.tell("/commands")["items"]) == 1


def test_another_order_under_the_same_key_is_refused_and_the_key_is_named(monitor: Any) -> None:
    command = order(monitor, headers=KEY).json()["id"]
    for wish in ({"kind": "stop"}, {"reason": "another"}, {"issued_by": "ben"}, {"to_step": 3}):
        other = monitor.post(COMMANDS, json={**ROLL_BACK, **wish}, headers=KEY)
        assert other.status_code == 422
        assert other.headers["content-type"] == "application/problem+json"
        assert other.json()["type"] == "urn:trainhealth:problem:key-reused"
        assert KEY["Idempotency-Key"] in other.json()["detail"]
        assert command in other.json()["detail"]
    assert len(monitor.tell("/commands")["items"]) == 1


def test_a_renewed_token_sends_an_order_again_and_the_first_stays_on_record(monitor: Any, clock: Any) -> None:
    answers = []
    for name in ("old", "new"):
        with writing(monitor.monitor.store.engine) as connection, connection.begin():
            expires = clock() + timedelta(days=1)
            _, secret = tokens.create(connection, name, [Scope.CONTROL], clock(), expires_at=expires)
        monitor.monitor.door.forget()
        answers.append(order(monitor, headers={**KEY, "Authorization": f"Bearer {secret}"}))
    assert [one.status_code for one in answers] == [201, 200]
    assert answers[1].json()["issued_by"] == "ana (token old)"


def test_a_key_belongs_to_its_run(monitor: Any) -> None:
    monitor.register("other")
    order(monitor, headers=KEY)
    assert monitor.post("/api/v1/runs/other/commands", json=ROLL_BACK, headers=KEY).status_code == 201


def test_an_order_that_was_refused_leaves_no_key_behind(monitor: Any, batch: Build) -> None:
    blocking = order(monitor).json()["id"]
    assert order(monitor, headers=KEY).status_code == 409
    monitor.send(batch(1, events=[says(blocking, "accepted"), says(blocking, "succeeded")]))
    assert order(monitor, headers=KEY).status_code == 201


@pytest.mark.parametrize("key", ["", '""', "a b", "x" * 201, "naïve".encode("latin-1"), '"a'])
def test_what_is_no_key_is_refused_with_what_would_do(monitor: Any, key: Any) -> None:
    answer = order(monitor, headers={"Idempotency-Key": key})
    assert answer.status_code == 422
    (mistake,) = answer.json()["errors"]
    assert mistake["field"] == "header.Idempotency-Key"
    assert "1 to 200 letters" in mistake["problem"]
    assert monitor.tell("/commands")["items"] == []


def test_one_key_at_two_monitors_at_once_is_one_command(serve: Any, batch: Build) -> None:
    monitors = [serve(), serve()]
    monitors[0].register()
    for one in monitors:  # FastAPI finishes a route with its first request, and not in two threads at once
        assert order(one, headers={"Idempotency-Key": ""}).status_code == 422
    ready = threading.Barrier(6)

    def send(number: int) -> Any:
        ready.wait()
        return order(monitors[number % 2], headers=KEY)

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(send, range(6)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_a_suggestion_accepted_again_with_its_key_is_the_same_command(monitor: Any, batch: Build) -> None:
    monitor.send(batch(1, range(5), loss=["NaN"] * 5))
    told = {"suggestion": monitor.tell("/health")["suggestion"]["id"], "issued_by": "ana"}
    path = "/api/v1/runs/demo/suggestion/accept"
    first, again = (monitor.post(path, json=told, headers=KEY) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    assert order(monitor, headers=KEY).status_code == 422  # an order of another kind


def test_a_pending_command_is_cancelled_at_once_and_never_goes_out(monitor: Any, batch: Build) -> None:
    command = order(monitor).json()["id"]
    for _ in range(2):
        answer = cancel(monitor, command)
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert answer.json()["history"][-1]["message"] == "cancelled by ben: the wrong run"
    reply = monitor.send(batch(1)).json()
    assert (reply["commands"], reply["withdrawn"]) == ([], [])
    assert life(monitor, command) == ["pending", "cancelled"]
    assert order(monitor).status_code == 201  # the place is free


def test_a_delivered_command_is_cancelled_once_the_trainer_has_dropped_it(monitor: Any, batch: Build) -> None:
    command = order(monitor).json()["id"]
    monitor.send(batch(1))
    for _ in range(2):
        answer = cancel(monitor, command)
        assert (answer.status_code, answer.json()["state"]) == (202, "cancelling")
    assert order(monitor).status_code == 409  # nobody knows yet which way it goes
    reply = monitor.send(batch(2)).json()
    assert (reply["commands"], reply["withdrawn"]) == ([], [command])
    monitor.send(batch(3, events=[says(command, "cancelled")]))
    assert life(monitor, command) == ["pending", "delivered", "cancelling", "cancelled"]
    assert monitor.send(batch(4)).json()["withdrawn"] == []
    assert order(monitor).status_code == 201


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "refused"])
def test_a_trainer_that_was_faster_than_the_cancelling_has_the_last_word(
    monitor: Any, batch: Build, outcome: str
) -> None:
    command = order(monitor).json()["id"]
    monitor.send(batch(1))
    cancel(monitor, command)
    monitor.send(batch(2, events=[says(command, "accepted")]))
    assert monitor.send(batch(3)).json()["withdrawn"] == []
    refused = cancel(monitor, command)
    assert refused.status_code == 409
    assert f"command {command} is accepted" in refused.json()["detail"]
    monitor.send(batch(4, events=[says(command, outcome), says(command, "cancelled")]))
    assert life(monitor, command) == ["pending", "delivered", "cancelling", "accepted", outcome]


def test_a_cancelling_that_the_trainer_never_answers_ends_with_the_commands_time(
    monitor: Any, batch: Build, clock: Any
) -> None:
    command = order(monitor).json()["id"]
    monitor.send(batch(1))
    cancel(monitor, command)
    clock.advance(301)
    assert order(monitor).status_code == 201
    assert life(monitor, command)[-1] == "expired"
    monitor.send(batch(2, events=[says(command, "succeeded")]))  # it waited in a spool
    assert life(monitor, command)[-1] == "succeeded"


def fire(monitor: Any) -> str:
    """The same alert again, which asks for a rollback; what became of it."""
    labels = {"alertname": "LossIsNaN", "run": "demo", "action": "roll_back"}
    alert = {"status": "firing", "labels": labels, "annotations": {}, "fingerprint": "f1"}
    times = {"startsAt": "2026-03-01T12:00:00Z", "endsAt": "0001-01-01T00:00:00Z"}
    answer = monitor.post("/api/v1/alerts", json={"version": "4", "alerts": [{**alert, **times}]})
    (told,) = answer.json()["alerts"]
    return str(told["result"])


def test_a_rollback_that_a_person_took_back_is_not_ordered_again_by_the_policy(
    serve: Any, batch: Build, clock: Any
) -> None:
    monitor = serve(policy="act", policy_cooldown_s=100)
    monitor.register()
    (asked,) = monitor.send(batch(1, range(5), loss=["NaN"] * 5)).json()["commands"]
    cancel(monitor, asked["id"])
    monitor.send(batch(2, events=[says(asked["id"], "cancelled")]))
    for seq in range(3, 6):
        clock.advance(3700)
        assert monitor.send(batch(seq, [seq + 5], loss=["NaN"])).json()["commands"] == []
    assert monitor.tell("/health")["needs_person"] == "ben cancelled a rollback: the wrong run"
    assert monitor.tell("/health")["status"] == "diverged"
    assert order(monitor).status_code == 201
    assert monitor.tell("/health")["needs_person"] is None


def test_a_rollback_taken_back_on_a_healthy_run_calls_nobody(monitor: Any, batch: Build, clock: Any) -> None:
    monitor.send(batch(1, range(5), loss=[1.0] * 5))
    cancel(monitor, order(monitor).json()["id"])
    monitor.send(batch(2, range(5, 10), loss=[1.0] * 5))
    assert monitor.tell("/health")["needs_person"] is None
    assert fire(monitor) == "not_now"
    assert monitor.tell("/health")["needs_person"] == "ben cancelled a rollback: the wrong run"
    clock.advance(3700)
    monitor.send(batch(3, range(10, 15), loss=[1.0] * 5))
    assert monitor.tell("/health")["needs_person"] is None


def test_an_alert_that_a_rollback_covered_orders_none_after_a_person_took_that_back(
    monitor: Any, batch: Build, clock: Any
) -> None:
    command = order(monitor).json()["id"]
    assert fire(monitor) == "covered"
    cancel(monitor, command)
    for seq in range(1, 4):
        monitor.send(batch(seq, [seq], loss=[1.0]))
        assert fire(monitor) == "not_now"
        clock.advance(1100)
    cancel(monitor, command)  # said again, which is nothing new
    clock.advance(400)
    monitor.send(batch(4, [4], loss=[1.0]))  # an hour went well
    assert fire(monitor) == "ordered"


def test_a_held_reply_wakes_for_a_cancelling_also_at_another_monitor(
    serve: Any, monitor: Any, batch: Build
) -> None:
    other = serve()
    command = order(monitor).json()["id"]
    monitor.send(batch(1))
    held = monitor.start_post("/api/v1/runs/demo/exchange", json=batch(2, hold_s=20))
    assert cancel(other, command).status_code == 202
    assert held.result(10).json()["withdrawn"] == [command]


def test_a_withdrawal_ends_the_hold_once_for_each_process_and_an_order_still_wakes_it(
    serve: Any, batch: Build
) -> None:
    monitor = serve(command_poll_s=0.05)
    monitor.register()
    command = order(monitor).json()["id"]
    monitor.send(batch(1))
    cancel(monitor, command)

    def held(**more: Any) -> float:
        begun = time.perf_counter()
        assert monitor.send(batch(**more)).json()["withdrawn"] == [command]
        return time.perf_counter() - begun

    assert held(seq=2, hold_s=20) < 10
    assert held(seq=2, hold_s=20) < 10  # it missed the reply
    assert held(seq=3, hold_s=1.5) > 1.4
    waiting = monitor.start_post("/api/v1/runs/demo/exchange", json=batch(4, hold_s=20))
    time.sleep(0.3)
    assert not waiting.done()
    save = monitor.post(COMMANDS, json={**ROLL_BACK, "kind": "save_checkpoint"}).json()["id"]
    told = waiting.result(10).json()
    assert ([one["id"] for one in told["commands"]], told["withdrawn"]) == ([save], [command])
    assert held(seq=1, session="s2", attempt=2, hold_s=20) < 10
    assert held(seq=2, session="s2", attempt=2, hold_s=0.5) > 0.4


def test_a_command_that_is_none_or_has_ended_cannot_be_cancelled(monitor: Any, batch: Build) -> None:
    assert cancel(monitor, "c9").status_code == 404
    command = order(monitor).json()["id"]
    monitor.register("other")
    foreign = monitor.delete(f"/api/v1/runs/other/commands/{command}", params={"reason": "x"})
    assert foreign.status_code == 404
    no_reason = monitor.delete(f"{COMMANDS}/{command}")
    assert no_reason.status_code == 422
    assert "reason" in json.dumps(no_reason.json()["errors"])
    monitor.send(batch(1, events=[says(command, "failed")]))
    answer = cancel(monitor, command)
    assert answer.status_code == 409
    assert "is failed" in answer.json()["detail"]


def test_cancelling_needs_the_scope_control_and_the_token_is_on_record(
    serve: Any, monitor: Any, clock: Any
) -> None:
    command = order(monitor).json()["id"]
    secrets = {}
    with writing(monitor.monitor.store.engine) as connection, connection.begin():
        for scope in (Scope.READ, Scope.CONTROL):
            expires = clock() + timedelta(days=1)
            _, secret = tokens.create(connection, f"for-{scope}", [scope], clock(), expires_at=expires)
            secrets[scope] = {"Authorization": f"Bearer {secret}"}
    monitor.monitor.door.forget()
    assert cancel(monitor, command, headers=secrets[Scope.READ]).status_code == 403
    answer = cancel(monitor, command, headers=secrets[Scope.CONTROL])
    assert answer.json()["history"][-1]["message"] == "cancelled by ben (token for-control): the wrong run"
