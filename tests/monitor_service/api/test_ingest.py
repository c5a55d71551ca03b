"""The exchange: committed before it is answered, once, wherever and in whatever order it belongs."""

import math
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Build = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
Serve = Callable[..., Any]


def test_a_run_is_made_known_once_and_updated_after(monitor: Any) -> None:
    again = monitor.register(config={"lr": 0.5, "odd": "NaN"}, total_steps=2000)
    assert again.status_code == 200
    assert again.json()["config"] == {"lr": 0.5, "odd": "NaN"}
    assert monitor.tell()["total_steps"] == 2000


def test_every_kind_of_number_arrives_as_it_left(monitor: Any, batch: Build) -> None:
    values = [
        "NaN",
        "Infinity",
        "-Infinity",
        -0.0,
        5e-324,
        2.2250738585072014e-308,
        0.1,
        1.7976931348623157e308,
    ]
    steps = [*range(7), 2**53 + 1]
    assert monitor.send(batch(1, steps, loss=values)).status_code == 200
    told = monitor.tell("/series?name=loss")["series"]["loss"]
    assert told["value"] == values
    assert math.copysign(1, told["value"][3]) == -1
    assert told["step"] == steps


def test_a_step_without_a_value_is_a_gap_and_not_a_nan(monitor: Any, batch: Build) -> None:
    monitor.send(batch(1, [1, 2, 3], loss=[0.5, None, 0.3], probe=[None, "NaN", None]))
    told = monitor.tell("/series?name=loss&name=probe")["series"]
    assert (told["loss"]["step"], told["loss"]["value"]) == ([1, 3], [0.5, 0.3])
    assert (told["probe"]["step"], told["probe"]["value"]) == ([2], ["NaN"])


def test_a_repeat_is_a_duplicate_even_if_only_how_it_was_sent_differs(monitor: Any, batch: Build) -> None:
    event = {"type": "finding", "step": 2, "guard": "spike", "severity": "warning", "message": "high"}
    sent = batch(1, [1, 2], loss=[0.5, 0.4], events=[event])
    assert monitor.send(sent).json()["duplicate"] is False
    before = monitor.tell(), monitor.tell("/events")
    assert monitor.send({**sent, "outbox": {"spooled_batches": 3}}).json()["duplicate"] is True
    assert (monitor.tell(), monitor.tell("/events")) == before


@pytest.mark.parametrize("change", ["value", "event", "attempt"])
def test_another_batch_with_the_same_number_is_refused(monitor: Any, batch: Build, change: str) -> None:
    event = {"type": "finding", "step": 2, "guard": "spike", "severity": "warning", "message": "high"}
    monitor.send(batch(1, [1], loss=[0.0], events=[event]))
    other = {
        "value": batch(1, [1], loss=[-0.0], events=[event]),
        "event": batch(1, [1], loss=[0.0], events=[{**event, "severity": "error"}]),
        "attempt": batch(1, [1], loss=[0.0], events=[event], attempt=2),
    }[change]
    answer = monitor.send(other)
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert "seq 1" in answer.json()["detail"]
    assert monitor.tell("/series?name=loss")["series"]["loss"]["value"] == [0.0]


def test_an_event_of_an_unknown_type_is_kept_whole(monitor: Any, batch: Build) -> None:
    strange = {
        "type": "moon_phase",
        "step": 3,
        "time": "2026-03-01T12:00:00Z",
        "phase": 0.5,
        "odd": ["NaN", None],
    }
    monitor.send(batch(1, events=[strange]))
    (told,) = monitor.tell("/events")["items"]
    assert told["type"] == "moon_phase"
    assert told["data"] == strange


def test_numbers_that_are_no_json_numbers_survive_in_events(monitor: Any, batch: Build) -> None:
    reading = {"loss": "NaN", "bound": "-Infinity", "layer": "unet.mid"}
    event = {
        "type": "finding",
        "step": 1,
        "guard": "g",
        "severity": "error",
        "message": "m",
        "reading": reading,
    }
    change = {"type": "checkpoint", "step": 1, "checkpoint": "c1", "state": "bad", "probe_loss": "NaN"}
    monitor.send(batch(1, events=[event, change]))
    assert monitor.tell("/events?severity=error")["items"][0]["data"]["reading"] == reading
    assert monitor.tell("/checkpoints")["items"][0]["probe_loss"] == "NaN"


def test_after_a_rollback_the_series_is_the_effective_one_and_the_abandoned_can_be_seen(
    monitor: Any, batch: Build
) -> None:
    begins = {
        "type": "attempt_started",
        "step": 3,
        "attempt": 2,
        "reason": "rollback",
        "checkpoint": "step-3",
    }
    monitor.send(batch(1, [1, 2, 3, 4, 5], loss=[1, 2, 3, 4, "NaN"]))
    monitor.send(batch(2, [3, 4], attempt=2, loss=[30, 40], events=[begins]))
    assert monitor.tell("/series?name=loss")["series"]["loss"] | {"time": []} == {
        "attempt": [1, 1, 2, 2],
        "step": [1, 2, 3, 4],
        "value": [1.0, 2.0, 30.0, 40.0],
        "time": [],
    }
    assert monitor.tell("/series?name=loss&attempt=1")["series"]["loss"]["value"] == [1, 2, 3, 4, "NaN"]
    assert monitor.tell("/series?name=loss&attempt=all&from_step=4")["series"]["loss"]["value"] == [
        4,
        "NaN",
        40,
    ]
    assert monitor.tell()["attempts"][1]["checkpoint"] == "step-3"


def story(batch: Build) -> list[dict[str, Any]]:
    """Two attempts, events of every lasting kind, and a batch whose steps overlap nobody's."""
    at = "2026-03-01T12:00:0{}Z".format
    sealed = {
        "type": "checkpoint",
        "checkpoint": "c2",
        "step": 2,
        "state": "sealed",
        "size_bytes": 9,
        "time": at(1),
    }
    good = {**sealed, "state": "good", "probe_loss": 0.25, "time": at(2)}
    begins = {"type": "attempt_started", "step": 2, "attempt": 2, "reason": "rollback", "time": at(3)}
    first = {"type": "attempt_started", "step": 0, "attempt": 1, "reason": "start", "time": at(0)}
    return [
        batch(1, [0, 1], loss=[0.5, "NaN"], events=[first]),
        batch(2, [2, 3], loss=[2, 3], events=[{**sealed, "size_bytes": None}, good]),
        batch(3, events=[sealed, begins], attempt=2),
        batch(4, [2, 4], attempt=2, loss=[20, None], grad_norm=[1, 2]),
    ]


def seen(monitor: Any, run: str) -> Any:
    """What a reader is told, apart from names, ids and moments of arrival."""
    told = monitor.tell(run=run)
    events = [
        (event["attempt"], event["type"], str(event["data"]))
        for event in monitor.tell("/events", run=run)["items"]
    ]
    series = "/series?name=loss&name=grad_norm&attempt="
    return (
        [monitor.tell(f"{series}{attempt}", run=run)["series"] for attempt in ("effective", "all")],
        sorted(events),
        monitor.tell("/checkpoints", run=run),
        [{**attempt, "started_at": ""} for attempt in told["attempts"]],
        told["last_good_checkpoint"],
        told["cost"],
    )


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(4)), again=st.lists(st.integers(0, 3), max_size=3), chance=st.randoms())
def test_any_order_and_any_repetition_of_batches_tells_the_same(
    monitor: Any, batch: Build, order: list[int], again: list[int], chance: Any
) -> None:
    arriving = [*order, *again]
    chance.shuffle(arriving)
    in_order, shuffled = f"run-{uuid.uuid4()}", f"run-{uuid.uuid4()}"
    for run, indices in ((in_order, range(4)), (shuffled, arriving)):
        monitor.register(run)
        came: set[int] = set()
        for index in indices:
            assert monitor.send(story(batch)[index], run).json()["duplicate"] is (index in came)
            came.add(index)
    assert seen(monitor, shuffled) == seen(monitor, in_order)


def test_two_sessions_may_use_the_same_numbers(monitor: Any, batch: Build) -> None:
    assert monitor.send(batch(1, [1], loss=[1.0], session="a")).status_code == 200
    answer = monitor.send(batch(1, [2], loss=[2.0], session="b", attempt=2))
    assert answer.json()["duplicate"] is False


def test_what_was_answered_is_there_after_a_restart(serve: Serve, monitor: Any, batch: Build) -> None:
    for seq in range(1, 6):
        monitor.send(batch(seq, [seq], loss=[float(seq)]))
    monitor.monitor.store.close()
    after = serve()
    assert after.tell("/series?name=loss")["series"]["loss"]["value"] == [1, 2, 3, 4, 5]
    assert after.send(batch(5, [5], loss=[5.0])).json()["duplicate"] is True


def test_a_full_disk_is_503_and_nothing_of_the_batch_stays(monitor: Any, batch: Build, url: str) -> None:
    if not url.startswith("sqlite"):
        pytest.skip("only an SQLite file can be made full by asking")
    noise = [math.sin(step * 1e5) for step in range(15_000)]
    with monitor.monitor.store.reading() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    monitor.monitor.store.write(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count = {pages + 1}"))
    answer = monitor.send(batch(1, range(15_000), loss=noise))
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert monitor.tell()["series"] == []
    assert monitor.get("/healthz").status_code == 200
    monitor.monitor.store.write(lambda c: c.exec_driver_sql("PRAGMA max_page_count = 1000000"))
    assert monitor.send(batch(1, range(15_000), loss=noise)).json()["duplicate"] is False


def test_a_monitor_whose_writer_has_ended_says_so(monitor: Any, batch: Build) -> None:
    assert monitor.get("/healthz").json() == {"status": "ok"}
    monitor.monitor.store.close()
    assert monitor.get("/healthz").status_code == 503
    assert monitor.send(batch(1, [1], loss=[1.0])).status_code == 503


def test_ten_batches_at_once_are_all_stored(monitor: Any, batch: Build) -> None:
    url = "/api/v1/runs/demo/exchange"
    waiting = [monitor.start_post(url, json=batch(seq, [seq], loss=[0.5])) for seq in range(1, 11)]
    assert {future.result(10).status_code for future in waiting} == {200}
    assert monitor.tell("/series?name=loss")["series"]["loss"]["step"] == list(range(1, 11))


def test_the_character_nul_in_a_text_is_stored_or_refused_and_never_an_error_of_ours(
    monitor: Any, batch: Build
) -> None:
    assert monitor.send(batch(1, [1], session="a\0b", loss=[1.0])).status_code in (200, 422)
    order = {"kind": "stop", "reason": "a\0b"}
    assert monitor.post("/api/v1/runs/demo/commands", json=order).status_code in (201, 202, 422)
    assert monitor.send(batch(1, [1], attempt=2, session="s2", loss=[1.0])).status_code == 200
