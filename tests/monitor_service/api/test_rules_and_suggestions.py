"""Rules in the running monitor: what health says, who may change them, what a person may accept."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from monitor_service import tokens
from monitor_service.store import open_engine, writing
from monitor_service.tokens import Scope
from monitor_service.watchdog import look_once

Build = Callable[..., dict[str, Any]]
RULES = "/api/v1/runs/demo/rules"
ACCEPT = "/api/v1/runs/demo/suggestion/accept"
on_both = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
NANS = ["NaN"] * 5


def look(served: Any) -> None:
    look_once(served.monitor.store, served.monitor.clock(), served.monitor.settings)


def choose(served: Any, where: str = RULES, reason: str = "why not", **values: Any) -> dict[str, Any]:
    answer = served.put(where, json={"values": values, "reason": reason, "changed_by": "ana"})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def speaking(served: Any, run: str = "demo") -> list[str]:
    return [concern["rule"] for concern in served.tell("/health", run)["concerns"]]


def train(served: Any, batch: Build, seq: int, losses: list[Any], **more: Any) -> dict[str, Any]:
    """A batch of ten steps or so that follows on those before."""
    answer = served.send(batch(seq, range(seq * 10, seq * 10 + len(losses)), loss=losses, **more))
    assert answer.status_code == 200, answer.text
    reply: dict[str, Any] = answer.json()
    return reply


@on_both
def test_a_loss_that_stays_high_is_told_with_its_beginning_and_ends_when_it_comes_down(
    monitor: Any, batch: Build, clock: Any
) -> None:
    for seq in range(1, 41):
        train(monitor, batch, seq, [0.1] * 10)
    assert monitor.tell("/health")["risk"] == {"level": "none", "reasons": []}
    for seq in range(41, 61):
        train(monitor, batch, seq, [0.5] * 10)
    health = monitor.tell("/health")
    assert (health["status"], health["concerns"]) == ("healthy", [])
    assert health["risk"]["level"] == "raised"
    begun = clock().isoformat().replace("+00:00", "Z")
    for _ in range(10):  # it answers, and stays where it is
        clock.advance(30)
        train(monitor, batch, 61 + _, [0.5] * 10)
    look(monitor)
    health = monitor.tell("/health")
    assert (health["status"], health["risk"]["level"]) == ("suspect", "high")
    (concern,) = health["concerns"]
    assert (concern["rule"], concern["severity"], concern["since"]) == ("loss_risen", "warning", begun)
    assert "more than 2 times the 0.1" in concern["words"]
    assert concern["words"] in health["reasons"]
    assert monitor.get("/api/v1/runs").json()["items"][0]["risk"] == "high"
    for seq in range(80, 110):
        train(monitor, batch, seq, [0.12] * 10)
    assert monitor.tell("/health")["status"] == "healthy"


def test_time_alone_lets_a_rule_speak_and_be_silent_again(monitor: Any, batch: Build, clock: Any) -> None:
    train(monitor, batch, 1, [1.0])
    monitor.post("/api/v1/runs/demo/commands", json={"kind": "stop", "reason": "x", "valid_for_s": 90})
    for advance_s, expected in ((59, []), (1, ["command_unanswered"]), (29, ["command_unanswered"]), (1, [])):
        clock.advance(advance_s)
        look(monitor)
        assert [one for one in speaking(monitor) if one == "command_unanswered"] == expected


def test_a_command_that_the_trainer_answers_concerns_nobody(monitor: Any, batch: Build, clock: Any) -> None:
    order = monitor.post("/api/v1/runs/demo/commands", json={"kind": "save_checkpoint", "reason": "x"}).json()
    train(monitor, batch, 1, [1.0])
    clock.advance(40)
    says = {"type": "command", "step": 1, "command": order["id"], "state": "accepted"}
    train(monitor, batch, 2, [1.0], events=[says])
    clock.advance(40)
    train(monitor, batch, 3, [1.0])
    look(monitor)
    assert speaking(monitor) == []


def test_three_rollbacks_in_an_hour_are_a_loop_by_the_trainers_clock(
    monitor: Any, batch: Build, clock: Any
) -> None:
    def back(minute: int) -> dict[str, Any]:
        at = f"2026-02-28T0{minute // 60}:{minute % 60:02}:00Z"
        facts = {"type": "rollback", "step": 9, "from_step": 9, "to_step": 5, "source": "snapshot"}
        return {**facts, "time": at, "reason": "NaN", "trigger": "guard", "seconds": 0.1}

    drained = [back(0), back(50), back(110)]  # a spool tells of two hours at once
    train(monitor, batch, 1, [1.0], events=drained)
    assert "rollback_loop" not in speaking(monitor)
    train(monitor, batch, 2, [1.0], events=[back(109)])
    assert "rollback_loop" in speaking(monitor)
    assert any("3 rollbacks between" in reason for reason in monitor.tell("/health")["risk"]["reasons"])
    clock.advance(3601)
    train(monitor, batch, 3, [1.0])
    assert "rollback_loop" not in speaking(monitor)


def test_a_missing_batch_and_dropped_steps_are_told_and_the_status_stays(
    monitor: Any, batch: Build, clock: Any
) -> None:
    train(monitor, batch, 1, [1.0])
    hole = batch(3, [30], loss=[1.0])
    assert monitor.send({**hole, "outbox": {"dropped_steps": 40}}).status_code == 200
    clock.advance(60)
    train(monitor, batch, 4, [1.0])
    health = monitor.tell("/health")
    assert [one["rule"] for one in health["concerns"]] == ["reports_dropped", "sequence_gap"]
    assert "40 steps lost" in health["concerns"][0]["words"]
    assert "1 batches are missing since 2026-03-01 12:00:00 UTC" in health["concerns"][1]["words"]
    assert health["status"] == "healthy"
    train(monitor, batch, 2, [1.0])
    assert speaking(monitor) == ["reports_dropped"]


def test_a_run_that_keeps_no_valid_checkpoint_is_suspect(monitor: Any, batch: Build) -> None:
    monitor.register(checkpoint_interval_steps=10, total_steps=1000)
    train(monitor, batch, 1, [1.0] * 10)
    sealed = {"type": "checkpoint", "step": 15, "checkpoint": "step-15", "state": "sealed"}
    train(monitor, batch, 2, [1.0] * 10, events=[sealed])
    train(monitor, batch, 3, [1.0] * 16)  # up to step 45
    assert speaking(monitor) == []
    train(monitor, batch, 5, [1.0])
    assert monitor.tell("/health")["status"] == "suspect"
    assert "since step 15; one is due every 10 steps" in monitor.tell("/health")["reasons"][0]
    bad = {"type": "checkpoint", "step": 50, "checkpoint": "step-50", "state": "bad", "failed_check": "nan"}
    train(monitor, batch, 6, [1.0], events=[bad])
    assert "no_valid_checkpoint" in speaking(monitor)


def test_a_prediction_of_a_guard_raises_the_risk_and_not_the_status(monitor: Any, batch: Build) -> None:
    finding = {
        **{"type": "finding", "step": 19, "guard": "drift", "severity": "warning", "message": "moments lag"},
        "reading": {"predicts": "divergence", "lag": 3.1},
    }
    train(monitor, batch, 1, [1.0] * 10, events=[finding])
    health = monitor.tell("/health")
    assert health["status"] == "healthy"
    assert health["risk"] == {
        "level": "raised",
        "reasons": ["predicted by drift at step 19: moments lag"],
    }


def test_a_run_that_ended_concerns_nobody_any_more(monitor: Any, batch: Build) -> None:
    train(monitor, batch, 1, NANS)
    assert monitor.tell("/health")["suggestion"] is not None
    train(monitor, batch, 2, [], events=[{"type": "run_ended", "step": 15, "status": "failed"}])
    health = monitor.tell("/health")
    assert (health["concerns"], health["risk"]["level"], health["suggestion"]) == ([], "none", None)
    assert monitor.post(ACCEPT, json={"suggestion": "x"}).status_code == 409


@on_both
def test_what_is_chosen_for_a_run_outweighs_its_project_and_both_the_settings(
    serve: Any, batch: Build
) -> None:
    monitor = serve(diverged_after_steps=5)
    monitor.register(project="maps")
    monitor.register("other", project="maps")
    project = "/api/v1/projects/maps/rules"
    choose(monitor, project, diverged_after_steps=3, policy="off")
    told = choose(monitor, diverged_after_steps=2, reason="it is frail")
    assert told["of_project"] == {"diverged_after_steps": 3.0, "policy": "off"}
    assert told["of_run"] == {"diverged_after_steps": 2.0}
    assert (told["values"]["diverged_after_steps"], told["values"]["policy"]) == (2, "off")
    (change,) = told["history"]
    assert (change["reason"], change["changed_by"]) == ("it is frail", "ana")
    for run in ("demo", "other"):
        monitor.send(batch(1, range(2), loss=["NaN"] * 2), run=run)
    assert [monitor.tell("/health", run)["status"] for run in ("demo", "other")] == ["diverged", "healthy"]
    monitor.register("late", project="maps")
    monitor.send(batch(1, range(3), loss=["NaN"] * 3), run="late")
    assert monitor.tell("/health", "late")["status"] == "diverged"
    assert monitor.tell("/health", "late")["suggestion"] is None  # the policy of its project is off
    assert choose(monitor)["values"]["diverged_after_steps"] == 3
    assert len(choose(monitor)["history"]) == 3
    assert choose(monitor, project)["values"]["diverged_after_steps"] == 5
    assert monitor.get(RULES).json()["values"]["diverged_after_steps"] == 5


def test_rules_can_be_chosen_before_the_first_run_of_a_project(serve: Any, batch: Build) -> None:
    monitor = serve()
    choose(monitor, "/api/v1/projects/default/rules", policy="act")
    monitor.register()
    train(monitor, batch, 1, NANS)
    assert len(monitor.tell("/commands")["items"]) == 1


def test_what_is_chosen_holds_at_once_for_a_run_that_says_nothing(
    monitor: Any, batch: Build, clock: Any
) -> None:
    train(monitor, batch, 1, [1.0])
    clock.advance(40)
    choose(monitor, lost_after_s=30)
    assert monitor.tell("/health")["status"] == "lost"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"values": {"loss_rise_factor": 3}, "reason": "x"}, ("values.loss_rise_factor", "not permitted")),
        ({"values": {"loss_risen_factor": 1}, "reason": "x"}, ("values.loss_risen_factor", "above 1")),
        ({"values": {"policy": "maybe"}, "reason": "x"}, ("values.policy", "'suggest'")),
        ({"values": {"policy_budget": -1}, "reason": "x"}, ("values.policy_budget", "-1")),
        ({"values": {"diverged_after_steps": 2.5}, "reason": "x"}, ("values.diverged_after_steps",)),
        ({"values": {"lost_after_s": "Infinity"}, "reason": "x"}, ("values.lost_after_s", "1000000000")),
        ({"values": {"lost_after_s": "NaN"}, "reason": "x"}, ("values.lost_after_s",)),
        ({"values": {"database_url": "sqlite:///x"}, "reason": "x"}, ("values.database_url",)),
        ({"values": {}, "reason": ""}, ("reason",)),
        ({"values": [], "reason": "x"}, ("values",)),
        ({"reason": "x"}, ("values", "Field required")),
    ],
)
def test_rules_that_will_not_do_are_refused_with_name_and_limit(
    monitor: Any, body: dict[str, Any], words: tuple[str, ...]
) -> None:
    for where in (RULES, "/api/v1/projects/default/rules"):
        answer = monitor.put(where, json=body)
        assert answer.status_code == 422, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert all(word in answer.text for word in words), answer.text
        assert monitor.get(where).json()["history"] == []


def test_rules_of_an_unknown_run_are_404(monitor: Any) -> None:
    for answer in (
        monitor.get("/api/v1/runs/radio-7/rules"),
        monitor.put("/api/v1/runs/radio-7/rules", json={"values": {}, "reason": "x"}),
    ):
        assert answer.status_code == 404
        assert "radio-7" in answer.json()["detail"]


def test_rules_are_read_with_read_and_chosen_with_control_within_ones_project(
    serve: Any, url: str, clock: Any
) -> None:
    engine = open_engine(url)
    with writing(engine) as connection, connection.begin():
        secret = {
            name: tokens.create(connection, name, [scope], clock(), project=project)[1]
            for name, scope, project in (
                ("ingest", Scope.INGEST, None),
                ("read", Scope.READ, "maps"),
                ("control", Scope.CONTROL, "maps"),
            )
        }
    engine.dispose()
    served = serve()
    by = {name: {"headers": {"Authorization": f"Bearer {one}"}} for name, one in secret.items()}
    for run, project in (("demo", "maps"), ("foreign", "secret")):
        served.put(
            f"/api/v1/runs/{run}",
            json={"started_at": clock().isoformat(), "project": project},
            **by["ingest"],
        )
    wish = {"json": {"values": {"policy": "act"}, "reason": "x"}}
    asked = {
        (method, where, name): getattr(served, method)(
            f"/api/v1/{where}/rules", **by[name], **(wish if method == "put" else {})
        ).status_code
        for method in ("get", "put")
        for where in ("runs/demo", "projects/maps", "runs/foreign", "projects/secret")
        for name in ("read", "control")
    }
    allowed = {key for key, status in asked.items() if status == 200}
    assert allowed == {
        (method, where, name)
        for method, name in (("get", "read"), ("put", "control"))
        for where in ("runs/demo", "projects/maps")
    }
    assert set(asked.values()) == {200, 403, 404}
    (change,) = served.get("/api/v1/runs/demo/rules", **by["read"]).json()["history"]
    assert change["changed_by"] == "operator (token control)"


@on_both
def test_a_suggestion_is_accepted_once_and_says_who_did(serve: Any, monitor: Any, batch: Build) -> None:
    other = serve()
    train(monitor, batch, 1, NANS)
    suggestion = other.tell("/health")["suggestion"]
    assert "5 losses are not finite" in suggestion["reason"]
    train(monitor, batch, 2, NANS)
    assert monitor.tell("/health")["suggestion"]["id"] == suggestion["id"]
    assert monitor.post(ACCEPT, json={"suggestion": "another"}).status_code == 409
    assert other.post(ACCEPT, json={"suggestion": "another"}).status_code == 409
    wish = {"suggestion": suggestion["id"], "issued_by": "ana"}
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda s=s: answers.append(s.post(ACCEPT, json=wish).status_code))
        for s in (monitor, other) * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(answers) == [201, 409, 409, 409]
    (command,) = monitor.tell("/commands")["items"]
    assert (command["kind"], command["issued_by"]) == ("roll_back", "ana")
    assert command["reason"].startswith("suggested: the last 10 losses")
    assert monitor.tell("/health")["suggestion"] is None
    assert [one["id"] for one in train(monitor, batch, 3, NANS)["commands"]] == [command["id"]]
    assert monitor.tell("/health")["suggestion"] is None  # while it is open


def test_a_used_up_budget_calls_for_a_person_until_one_orders_something(
    serve: Any, batch: Build, clock: Any
) -> None:
    monitor = serve(policy="act", policy_budget=1, policy_cooldown_s=0)
    monitor.register()

    def diverge(seq: int) -> dict[str, Any]:
        train(monitor, batch, seq, NANS)
        for command in monitor.tell("/health")["open_commands"]:
            says = {"type": "command", "step": 1, "command": command["id"], "state": "refused"}
            monitor.send(batch(seq, session="s1/answers", events=[says]))
        health: dict[str, Any] = monitor.tell("/health")
        return health

    assert diverge(1)["needs_person"] is not None  # the one order of its budget was refused at once
    clock.advance(4000)
    health = diverge(2)
    assert "budget of 1 rollbacks an hour is used up; a person must look" in health["needs_person"]
    assert len(monitor.tell("/commands")["items"]) == 1  # an hour alone does not give it back
    wish = {"suggestion": health["suggestion"]["id"]}
    assert monitor.post(ACCEPT, json=wish).status_code == 201
    assert monitor.tell("/health")["needs_person"] is None


def test_a_run_that_an_older_version_stored_is_judged_on(monitor: Any, batch: Build) -> None:
    old = '{"last_seen":"2026-03-01T12:00:00Z","progress_at":"2026-03-01T12:00:00Z","attempt":1,"step":9,'
    old += '"policy_orders":2,"policy_ordered_at":"2026-03-01T12:00:00Z"}'

    def write(connection: Any) -> None:
        connection.exec_driver_sql("UPDATE runs SET facts = ?", (old,))

    monitor.monitor.store.write(write)
    train(monitor, batch, 500, NANS)
    assert monitor.tell("/health")["status"] == "diverged"
    assert speaking(monitor) == []
