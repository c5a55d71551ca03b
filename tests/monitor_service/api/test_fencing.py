"""Two trainings under one name, and two processes in one attempt: the second is told, and leaves no trace."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

Build = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
OURS, THEIRS = "5f0c2a9e", "77aa01bc"


def test_another_training_under_the_name_is_refused_and_nothing_of_it_stays(serve: Any) -> None:
    monitor = serve()
    assert monitor.register(identity=OURS, config={"lr": 1}).status_code == 201
    before = monitor.tell()
    answer = monitor.register(identity=THEIRS, config={"lr": 2}, project="other", total_steps=5)
    assert answer.status_code == 409
    problem = answer.json()
    assert problem["type"] == "urn:trainhealth:problem:another-run"
    for word in (OURS, THEIRS, "'demo'", "2026-03-01 12:00", "a name of its own", "record.json"):
        assert word in problem["detail"]
    assert monitor.tell() == before
    assert monitor.register(identity=OURS, config={"lr": 3}).status_code == 200
    assert monitor.tell()["config"] == {"lr": 3}


def test_a_trainer_that_tells_no_identity_is_taken_and_the_first_to_tell_one_keeps_the_name(
    serve: Any,
) -> None:
    monitor = serve()
    assert monitor.register().status_code == 201
    assert monitor.register(identity=OURS).status_code == 200
    assert monitor.register().status_code == 200
    assert monitor.register(identity=THEIRS).status_code == 409


@pytest.mark.parametrize("identity", ["", "a b", "x" * 65, 5])
def test_what_is_no_identity_is_refused(serve: Any, identity: Any) -> None:
    answer = serve().register(identity=identity)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "identity"


def test_of_two_trainings_that_register_a_name_at_once_one_has_it(serve: Any) -> None:
    monitors = [serve(), serve()]
    for one in monitors:  # FastAPI finishes a route with its first request, and not in two threads at once
        one.register("other")
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(monitors[n % 2].register, identity=f"training-{n % 4}") for n in range(8)]
        answers = [(n % 4, one.result().status_code) for n, one in enumerate(asked)]
    taken = {number for number, status in answers if status != 409}
    assert len(taken) == 1
    assert sorted(status for _, status in answers) == [200, 201, *[409] * 6]


def test_a_batch_for_an_attempt_of_another_process_is_refused_and_leaves_no_trace(
    serve: Any, batch: Build
) -> None:
    monitor = serve()
    monitor.register(identity=OURS)
    begins = {"type": "attempt_started", "step": 0, "attempt": 1, "reason": "start"}
    monitor.send(batch(1, events=[begins], session="first-process"))
    monitor.send(batch(2, [1, 2], loss=[1.0, 2.0], session="first-process"))
    before = monitor.tell(), monitor.tell("/sessions"), monitor.tell("/events")
    for stranger in (
        batch(1, [1, 2], loss=[9.0, 9.0], session="second-process"),
        batch(1, events=[begins], session="second-process"),
        batch(1, session="second-process"),
        batch(1, attempt=2, events=[{**begins, "step": 500}], session="second-process"),
    ):
        answer = monitor.send(stranger)
        assert answer.status_code == 409
        assert answer.json()["type"] == "urn:trainhealth:problem:attempt-taken"
        for word in ("attempt 1", "first-pr", "second-p", "end one of them"):
            assert word in answer.json()["detail"]
    assert (monitor.tell(), monitor.tell("/sessions"), monitor.tell("/events")) == before


def test_what_a_process_left_behind_is_taken_whole_and_in_parts_while_the_next_one_trains(
    serve: Any, batch: Build
) -> None:
    monitor = serve()
    monitor.register(identity=OURS)
    monitor.send(batch(1, [1], loss=[1.0], session="first"))
    monitor.send(batch(1, [3], loss=[3.0], session="second", attempt=2))
    assert monitor.send(batch(2, [2], loss=[2.0], session="first")).status_code == 200
    assert monitor.send(batch(1, [3, 4], loss=[7.0, 7.0], session="first/3")).status_code == 200
    told = monitor.tell("/series?name=loss&attempt=1")["series"]["loss"]
    assert told["step"] == [1, 2, 3, 4]
    assert monitor.tell("/series?name=loss")["series"]["loss"]["value"] == [1.0, 2.0, 3.0]


def test_a_run_that_moves_to_another_monitor_keeps_its_training_and_its_attempts(
    serve: Any, batch: Build, tmp_path: Any
) -> None:
    monitor = serve()
    monitor.register(identity=OURS)
    monitor.send(batch(1, [1], loss=[1.0], session="first"))
    file = monitor.get("/api/v1/runs/demo/export").content
    with monitor.monitor.store.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM runs")
    zipped = {"Content-Type": "application/zip"}
    assert monitor.post("/api/v1/import", content=file, headers=zipped).status_code == 201
    assert monitor.register(identity=THEIRS).status_code == 409
    assert monitor.register(identity=OURS).status_code == 200
    assert monitor.send(batch(2, [2], loss=[2.0], session="first")).status_code == 200
    assert monitor.send(batch(1, [2], loss=[2.0], session="other")).status_code == 409
