"""Alertmanager's webhook: an alert becomes a command once, whatever is repeated, reordered or too late."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from monitor_service import tokens
from monitor_service.store import open_engine, writing
from monitor_service.tokens import Scope
from monitor_service.upkeep import keep_up

Build = Callable[..., dict[str, Any]]
ALERTS = "/api/v1/alerts"
NEVER = "0001-01-01T00:00:00Z"
on_both = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)


def alert(
    status: str = "firing",
    *,
    began: str = "2026-03-01T12:00:00.123456789Z",
    fingerprint: str = "f1",
    summary: str = "The loss is NaN.",
    **labels: str,
) -> dict[str, Any]:
    """One alert as Alertmanager writes it, about the run ``demo``, which asks for a rollback."""
    named = {
        "alertname": "TrainHealthNonfinite",
        "run": "demo",
        "action": "roll_back",
        "severity": "critical",
    }
    return {
        "status": status,
        "labels": {name: value for name, value in {**named, **labels}.items() if value},
        "annotations": {"summary": summary},
        "startsAt": began,
        "endsAt": NEVER if status == "firing" else "2026-03-01T12:01:00Z",
        "generatorURL": "http://prometheus/graph",
        "fingerprint": fingerprint,
    }


def message(*alerts: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Version 4, with keys that nobody here has use for, and one of a newer version."""
    return {
        "version": "4",
        "groupKey": '{}/{}:{alertname="x"}',
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "trainhealth",
        "groupLabels": {},
        "commonLabels": {},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager:9093",
        "notification_reason": "repeat",
        "alerts": list(alerts),
        **more,
    }


def post(monitor: Any, *alerts: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    answer = monitor.post(ALERTS, json=message(*alerts), **more)
    assert answer.status_code == 200, answer.text
    told: list[dict[str, Any]] = answer.json()["alerts"]
    return told


def results(*told: list[dict[str, Any]]) -> list[str]:
    return [one["result"] for some in told for one in some]


def orders(monitor: Any) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = monitor.tell("/commands")["items"]
    return items


@on_both
def test_an_alert_becomes_one_command_however_often_it_is_repeated(monitor: Any, batch: Build) -> None:
    told = [post(monitor, alert()) for _ in range(3)]
    assert results(*told) == ["ordered", "repeated", "repeated"]
    (command,) = orders(monitor)
    assert {one["command"] for some in told for one in some} == {command["id"]}
    assert (command["kind"], command["issued_by"]) == ("roll_back", "alertmanager")
    assert command["reason"] == "TrainHealthNonfinite: The loss is NaN."
    assert command["to_step"] is None
    assert [got["id"] for got in monitor.send(batch(1)).json()["commands"]] == [command["id"]]
    (kept,) = monitor.get(ALERTS).json()["items"]
    assert (kept["times"], kept["result"], kept["command"]) == (3, "ordered", command["id"])


def test_a_repeat_orders_nothing_after_its_command_ended(monitor: Any, batch: Build, clock: Any) -> None:
    (first,) = post(monitor, alert())
    done = {"type": "command", "step": 9, "command": first["command"], "state": "failed", "message": "no"}
    monitor.send(batch(1, events=[done]))
    clock.advance(7200)
    assert results(post(monitor, alert())) == ["repeated"]
    assert len(orders(monitor)) == 1


@on_both
def test_an_alert_that_was_resolved_before_it_came_orders_nothing(monitor: Any) -> None:
    told = [post(monitor, alert("resolved")), post(monitor, alert()), post(monitor, alert())]
    assert results(*told) == ["resolved", "resolved", "resolved"]
    assert orders(monitor) == []
    (kept,) = monitor.get(ALERTS).json()["items"]
    assert (kept["status"], kept["ends_at"]) == ("resolved", "2026-03-01T12:01:00Z")


def test_what_is_resolved_after_its_command_keeps_it_on_record(monitor: Any) -> None:
    (ordered,) = post(monitor, alert())
    (resolved,) = post(monitor, alert("resolved"))
    assert (resolved["result"], resolved["command"]) == ("resolved", ordered["command"])
    assert monitor.get(ALERTS).json()["items"][0]["result"] == "ordered"
    assert monitor.get(f"{ALERTS}?status=resolved").json()["items"][0]["command"] == ordered["command"]


def test_the_next_time_that_the_same_alert_begins_is_another_one(
    monitor: Any, batch: Build, clock: Any
) -> None:
    (first,) = post(monitor, alert())
    done = {"type": "command", "step": 9, "command": first["command"], "state": "succeeded", "message": ""}
    monitor.send(batch(1, events=[done]))
    clock.advance(900)
    (second,) = post(monitor, alert(began="2026-03-01T12:14:00Z"))
    assert second["result"] == "ordered"
    assert len(orders(monitor)) == 2


@on_both
def test_a_fault_that_a_rollback_has_answered_already_is_not_answered_twice(
    monitor: Any, batch: Build, clock: Any
) -> None:
    back = {
        **{"type": "rollback", "step": 9, "from_step": 9, "to_step": 5, "source": "snapshot"},
        **{"reason": "NaN", "trigger": "guard", "seconds": 0.1},
    }
    clock.advance(1)
    monitor.send(batch(1, [9], loss=[1.0], events=[back]))
    clock.advance(20)
    assert results(post(monitor, alert())) == ["covered"]
    began = clock().isoformat()
    clock.advance(1)
    assert results(post(monitor, alert(fingerprint="f2", began=began))) == ["ordered"]
    assert results(post(monitor, alert(fingerprint="f3", began=began))) == ["covered"]  # by the order above
    assert len(orders(monitor)) == 1


def test_cooldown_and_budget_hold_for_alerts_and_a_later_repeat_is_heard(
    serve: Any, batch: Build, clock: Any
) -> None:
    monitor = serve(policy_budget=2)
    monitor.register()

    def fire(minute: int) -> dict[str, Any]:
        began = (clock() - timedelta(seconds=1)).isoformat()
        (told,) = post(monitor, alert(fingerprint=f"f{minute}", began=began))
        if told["command"]:
            refused = {"type": "command", "step": 1, "command": told["command"], "state": "refused"}
            monitor.send(batch(minute + 1, events=[refused]))
        return told

    assert fire(0)["result"] == "ordered"
    clock.advance(60)
    late = alert(fingerprint="late", began=(clock() - timedelta(seconds=1)).isoformat())
    (told,) = post(monitor, late)
    assert told["result"] == "not_now"
    assert "within 600 s" in told["detail"]
    clock.advance(600)
    assert results(post(monitor, late)) == ["ordered"]
    monitor.send(
        batch(
            50,
            events=[{"type": "command", "step": 1, "command": orders(monitor)[0]["id"], "state": "refused"}],
        )
    )
    clock.advance(700)
    assert "budget of 2 rollbacks an hour" in fire(3)["detail"]
    assert "a person must look" in monitor.tell("/health")["needs_person"]
    clock.advance(3600)
    monitor.send(batch(60, [60], loss=[1.0]))  # all is well an hour later
    assert fire(4)["result"] == "ordered"


@pytest.mark.parametrize(
    ("labels", "result", "detail"),
    [
        ({"run": "radio-7"}, "unknown_run", "no run 'radio-7'"),
        ({"run": "a/b"}, "unknown_run", "no run 'a/b'"),
        ({"run": ""}, "unknown_run", "names no run"),
        ({"project": "other"}, "unknown_run", "no run 'demo' in project 'other'"),
        ({"project": "default"}, "ordered", "a rollback of run 'demo' is ordered"),
        ({"action": ""}, "noted", "asks for nothing"),
        ({"action": "stop"}, "noted", "asks for 'stop', which no alert may order"),
    ],
)
def test_each_alert_is_told_what_became_of_it(
    monitor: Any, labels: dict[str, str], result: str, detail: str
) -> None:
    (told,) = post(monitor, alert(**labels))
    assert told["result"] == result
    assert detail in told["detail"]
    assert len(orders(monitor)) == (result == "ordered")


def test_a_run_that_is_over_is_not_sent_back_and_alertmanager_does_not_try_again(
    monitor: Any, batch: Build
) -> None:
    monitor.send(batch(1, events=[{"type": "run_ended", "step": 9, "status": "finished"}]))
    (told,) = post(monitor, alert())  # 200: a 5xx would be repeated for ever
    assert told["result"] == "run_over"
    assert "finished" in told["detail"]
    assert orders(monitor) == []


def test_an_alert_about_a_run_that_registers_later_is_heard_when_it_is_repeated(monitor: Any) -> None:
    late = alert(run="radio-7")
    assert results(post(monitor, late)) == ["unknown_run"]
    monitor.register("radio-7")
    assert results(post(monitor, late)) == ["ordered"]


@on_both
def test_a_group_with_many_alerts_is_answered_in_its_order(monitor: Any) -> None:
    monitor.register("another")
    group = [
        alert(fingerprint="f1", run="nobody"),
        alert(fingerprint="f2"),
        alert("resolved", fingerprint="f3"),
        alert(fingerprint="f4", run="another"),
        alert(fingerprint="f4", run="another"),
    ]
    answer = monitor.post(ALERTS, json=message(*group, truncatedAlerts=3)).json()
    assert results(answer["alerts"]) == ["unknown_run", "ordered", "resolved", "ordered", "repeated"]
    assert answer["truncated"] == 3
    page = monitor.get(f"{ALERTS}?limit=3").json()
    rest = monitor.get(f"{ALERTS}?limit=3&before={page['next_before']}").json()
    kept = [one["fingerprint"] for one in page["items"] + rest["items"]]
    assert sorted(kept) == ["f1", "f2", "f3", "f4"]
    assert rest["next_before"] is None
    assert [one["fingerprint"] for one in monitor.get(f"{ALERTS}?run=demo").json()["items"]] == ["f3", "f2"]


@on_both
def test_two_monitors_that_get_the_same_alert_order_one_rollback(serve: Any, monitor: Any) -> None:
    other = serve()
    assert post(monitor) == post(other) == []  # the routes are built one after the other
    told: list[str] = []

    def send(served: Any) -> None:
        told.extend(results(post(served, alert())))

    threads = [threading.Thread(target=send, args=[served]) for served in (monitor, other) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(told) == ["ordered"] + ["repeated"] * 5
    assert len(orders(monitor)) == 1


def test_a_held_reply_carries_the_command_of_an_alert_at_once(serve: Any, batch: Build) -> None:
    monitor = serve(command_poll_s=3600.0)  # so that nothing but the alert itself wakes it
    monitor.register()
    held = monitor.start_post("/api/v1/runs/demo/exchange", json=batch(1, hold_s=10))
    while not monitor.monitor.bell.is_listened_to:
        pass
    (told,) = post(monitor, alert())
    assert [one["id"] for one in held.result(5).json()["commands"]] == [told["command"]]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, ("Alertmanager's webhook", "version", "Field required")),
        ({"version": "3", "alerts": []}, ("version", "'3'", "Input should be '4'")),
        (message(alert(), {"status": "firing"}), ("alerts.1.labels", "alerts.1.startsAt")),
        (message({**alert(), "status": "broken"}), ("alerts.0.status", "broken")),
        (message({**alert(), "startsAt": "yesterday"}), ("alerts.0.startsAt", "yesterday")),
        (message({**alert(), "labels": {"run": 7}}), ("alerts.0.labels.run", "7")),
        ([], ("Alertmanager's webhook", "should be an object")),
        (message(*[alert()] * 2001), ("alerts", "2000")),
    ],
)
def test_what_is_no_webhook_is_told_what_was_expected_and_leaves_no_trace(
    monitor: Any, body: Any, words: tuple[str, ...]
) -> None:
    answer = monitor.post(ALERTS, json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert "Alertmanager's webhook" in answer.json()["detail"]
    for word in words:
        assert word in answer.text
    assert monitor.get(ALERTS).json()["items"] == []
    assert orders(monitor) == []


def test_what_is_not_json_is_400_and_a_form_is_415(monitor: Any) -> None:
    kind = {"Content-Type": "application/json"}
    assert monitor.post(ALERTS, content=b"{", headers=kind).status_code == 400
    assert monitor.post(ALERTS, data={"version": "4"}).status_code == 415
    assert monitor.get(f"{ALERTS}?before=x").status_code == 422


def test_a_token_for_alerts_may_send_alerts_of_its_project_and_nothing_else(
    serve: Any, url: str, clock: Any
) -> None:
    secrets = _tokens(
        url, clock, hook=[Scope.HOOK], read=[Scope.READ], control=[Scope.CONTROL], ingest=[Scope.INGEST]
    )
    served = serve()
    headers = {who: {"Authorization": f"Bearer {secret}"} for who, secret in secrets.items()}
    for run, project in (("demo", "maps"), ("foreign", "secret")):
        start = {"started_at": clock().isoformat(), "project": project}
        assert served.put(f"/api/v1/runs/{run}", json=start, headers=headers["ingest"]).status_code == 201
    assert served.post(ALERTS, json=message(alert())).status_code == 401
    wrong = served.post(ALERTS, json=message(alert()), headers=headers["read"])
    assert wrong.status_code == 403
    assert "this needs hook or control" in wrong.json()["detail"]
    group = [alert(), alert(fingerprint="f2", run="foreign")]
    told = post(served, *group, headers=headers["hook"])
    assert results(told) == ["ordered", "unknown_run"]
    order = {"kind": "stop", "reason": "enough"}
    for path, json in (("/api/v1/runs/demo/commands", order), ("/api/v1/runs/demo/exchange", {})):
        assert served.post(path, json=json, headers=headers["hook"]).status_code == 403
    assert served.get(ALERTS, headers=headers["hook"]).status_code == 403
    (seen,) = served.get(ALERTS, headers=headers["read"]).json()["items"]
    assert seen["run"] == "demo"
    (command,) = served.get("/api/v1/runs/demo/commands", headers=headers["read"]).json()["items"]
    assert command["issued_by"] == "alertmanager (token hook)"
    assert results(post(served, alert(), headers=headers["control"])) == ["repeated"]


def _tokens(url: str, clock: Any, **scopes: list[Scope]) -> dict[str, str]:
    """Secrets by name; all but that of the trainer are for the project ``maps``."""
    engine = open_engine(url)
    with writing(engine) as connection, connection.begin():
        made = {
            name: tokens.create(
                connection, name, some, clock(), project=None if name == "ingest" else "maps"
            )[1]
            for name, some in scopes.items()
        }
    engine.dispose()
    return made


def test_a_token_of_another_project_can_neither_resolve_nor_repeat_an_episode(
    serve: Any, batch: Build, clock: Any, url: str
) -> None:
    served = serve()
    served.register(project="maps")
    served.send(batch(1, [1], loss=[1.0]))
    engine = open_engine(url)
    with writing(engine) as connection, connection.begin():
        secrets = {
            project: tokens.create(connection, f"hook-{project}", [Scope.HOOK], clock(), project=project)[1]
            for project in ("maps", "other")
        }
    engine.dispose()
    served.monitor.door.forget()
    maps, other = ({"headers": {"Authorization": f"Bearer {secrets[name]}"}} for name in ("maps", "other"))
    assert results(post(served, alert("resolved"), **other)) == ["resolved"]
    assert results(post(served, alert(), **other)) == ["resolved"]
    (told,) = post(served, alert(), **maps)
    assert told["result"] == "ordered"
    assert results(post(served, alert("resolved"), **other)) == ["resolved"]
    assert results(post(served, alert(), **maps)) == ["repeated"]


def test_alerts_leave_when_they_have_not_come_for_long(monitor: Any, clock: Any) -> None:
    post(monitor, alert(), alert(fingerprint="f2"))
    clock.advance(60 * 86_400)
    post(monitor, alert())
    clock.advance(31 * 86_400)
    keep_up(monitor.monitor.store, clock(), monitor.monitor.settings)
    assert [one["fingerprint"] for one in monitor.get(ALERTS).json()["items"]] == ["f1"]


def test_webhooks_are_counted_by_status_and_result(monitor: Any) -> None:
    post(monitor, alert(), alert("resolved", fingerprint="f2"))
    post(monitor, alert())
    text = monitor.get("/metrics").text
    for status, result, count in (
        ("firing", "ordered", 1),
        ("firing", "repeated", 1),
        ("resolved", "resolved", 1),
        ("firing", "unknown_run", 0),
    ):
        line = f'trainhealth_alert_webhooks_total{{result="{result}",status="{status}"}} {count}.0'
        assert line in text
