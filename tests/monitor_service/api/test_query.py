"""Questions: what a page or a program is told about runs."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monitor_service import queries

Build = Callable[..., dict[str, Any]]


def finding(step: int, severity: str) -> dict[str, Any]:
    return {"type": "finding", "step": step, "guard": "spike", "severity": severity, "message": f"at {step}"}


def test_runs_come_youngest_first_and_page_by_page(monitor: Any) -> None:
    for n in range(5):
        monitor.register(f"run-{n}", project="maps" if n % 2 else "default")
    seen, cursor = [], ""
    while cursor is not None:
        page = monitor.get(f"/api/v1/runs?limit=2{cursor and '&cursor=' + cursor}").json()
        seen += [run["run"] for run in page["items"]]
        cursor = page["next_cursor"]
    assert seen == ["run-4", "run-3", "run-2", "run-1", "run-0", "demo"]
    maps = monitor.get("/api/v1/runs?project=maps").json()["items"]
    assert [run["run"] for run in maps] == ["run-3", "run-1"]


def test_runs_are_chosen_by_status(monitor: Any, batch: Build) -> None:
    monitor.register("other")
    monitor.send(batch(1, [1], loss=[1.0], events=[finding(1, "error")]), run="other")
    for status, names in (("suspect", ["other"]), ("healthy", ["demo"]), ("lost", [])):
        told = monitor.get(f"/api/v1/runs?status={status}").json()["items"]
        assert [run["run"] for run in told] == names
    both = monitor.get("/api/v1/runs?status=suspect&status=healthy").json()["items"]
    assert len(both) == 2


def test_health_says_why_and_what_it_cost(monitor: Any, batch: Build) -> None:
    rollback = {
        "type": "rollback",
        "step": 10,
        "from_step": 10,
        "to_step": 4,
        "source": "checkpoint",
        "reason": "weights",
        "trigger": "guard",
        "seconds": 0.5,
    }
    good = {"type": "checkpoint", "step": 4, "checkpoint": "step-4", "state": "good"}
    monitor.send(batch(1, range(11), loss=[1.0] * 11, events=[good, rollback]))
    told = monitor.tell("/health")
    assert told["status"] == "recovering"
    assert told["reasons"] == ["rolled back from step 10 to 4: weights"]
    assert told["last_good_checkpoint"] == {"checkpoint": "step-4", "step": 4}
    assert told["cost"] == {"skipped_steps": 0, "rollbacks": 1, "steps_lost": 6, "seconds_lost": 6.5}
    assert (told["step"], told["total_steps"]) == (4, 1000)


def test_a_finished_run_has_done_all_its_steps(monitor: Any, batch: Build) -> None:
    end = {"type": "run_ended", "step": 1000, "status": "finished"}
    monitor.send(batch(1, range(990, 1000), loss=[1.0] * 10, events=[end]))
    assert (monitor.tell("/health")["step"], monitor.tell("/health")["total_steps"]) == (1000, 1000)
    assert monitor.tell()["transitions"][-1]["step"] == 1000
    assert 'trainhealth_step{project="default",run="demo"} 1000\n' in monitor.get("/metrics").text


def test_a_database_that_is_damaged_under_way_is_503_and_says_so(
    serve: Any, monitor: Any, batch: Build, tmp_path: Path
) -> None:
    for seq in range(1, 30):
        noise = [float(hash((seq, n))) for n in range(500)]
        monitor.send(batch(seq, range(seq * 500, seq * 500 + 500), loss=noise))
    monitor.monitor.store.close()
    file = tmp_path / "monitor.db"
    with file.open("r+b") as damaged:
        damaged.seek(60 * 4096)  # past the roots of tables: it still opens
        damaged.write(b"\xaa" * (file.stat().st_size - 60 * 4096))
    answer = serve().get("/api/v1/runs/demo/series?name=loss")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"


def test_no_page_needs_the_internet(monitor: Any) -> None:
    for path in ("/docs", "/redoc"):  # the framework's own load their scripts from elsewhere
        assert monitor.get(path).status_code == 404


def test_the_short_way_of_health_ends_as_the_router_does(monitor: Any, batch: Build) -> None:
    monitor.send(batch(1, [1], loss=[0.5]))
    assert monitor.get("/api/v1/runs/demo/health").status_code == 200
    unknown, misnamed, posted = (
        monitor.get("/api/v1/runs/nobody/health"),
        monitor.get("/api/v1/runs/-/health"),
        monitor.post("/api/v1/runs/demo/health"),
    )
    assert [answer.status_code for answer in (unknown, misnamed, posted)] == [404, 422, 405]
    assert all("problem+json" in answer.headers["content-type"] for answer in (unknown, misnamed, posted))


def test_questions_are_counted_by_their_route_whichever_way_they_take(monitor: Any) -> None:
    for path in ("/health", "/series?name=x", ""):
        monitor.get(f"/api/v1/runs/demo{path}")
    told = monitor.get("/metrics").text
    for path in ("/health", "/series", ""):
        route = f"/api/v1/runs/{{run}}{path}"
        assert f'trainhealth_query_duration_seconds_count{{route="{route}"}} 1.0\n' in told


def test_unchanged_health_is_304(monitor: Any, batch: Build) -> None:
    url = "/api/v1/runs/demo/health"
    tag = monitor.get(url).headers["etag"]
    assert monitor.get(url, headers={"If-None-Match": f'"other", W/{tag}'}).status_code == 304
    monitor.send(batch(1, [1], loss=[1.0]))
    changed = monitor.get(url, headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag


def test_buckets_thin_a_series_out_and_count_what_is_not_finite(monitor: Any, batch: Build) -> None:
    monitor.send(batch(1, range(100), loss=["NaN" if step % 10 == 9 else float(step) for step in range(100)]))
    told = monitor.tell("/series?name=loss&buckets=4&from_step=20&to_step=59")["series"]["loss"]
    assert told == {
        "step_from": [20, 30, 40, 50],
        "step_to": [29, 39, 49, 59],
        "min": [20, 30, 40, 50],
        "max": [28, 38, 48, 58],
        "last": ["NaN"] * 4,
        "count": [10] * 4,
        "nonfinite": [1] * 4,
    }


def test_a_bucket_without_a_finite_value_has_no_bounds(monitor: Any, batch: Build) -> None:
    monitor.send(batch(1, [1, 2], loss=["NaN", "Infinity"]))
    told = monitor.tell("/series?name=loss&buckets=1")["series"]["loss"]
    assert (told["min"], told["max"], told["last"], told["nonfinite"]) == ([None], [None], ["Infinity"], [2])


def test_a_range_of_steps_reads_over_many_batches(monitor: Any, batch: Build) -> None:
    for seq in range(10):
        steps = range(seq * 10, seq * 10 + 10)
        monitor.send(batch(seq + 1, steps, loss=[float(step) for step in steps]))
    told = monitor.tell("/series?name=loss&from_step=37&to_step=52")["series"]["loss"]
    assert told["value"] == [float(step) for step in range(37, 53)]


def test_an_unknown_series_names_the_known_ones(monitor: Any, batch: Build) -> None:
    monitor.send(batch(1, [1], loss=[1], grad_norm=[2]))
    answer = monitor.get("/api/v1/runs/demo/series?name=lose")
    assert answer.status_code == 404
    assert "known: grad_norm, loss" in answer.json()["detail"]
    assert monitor.get("/api/v1/runs/demo/series?name=loss&attempt=last").status_code == 422


def test_events_are_chosen_by_type_and_severity_and_go_on_after_the_last_seen(
    monitor: Any, batch: Build
) -> None:
    skip = {"type": "step_skipped", "step": 3, "reason": "spike", "loss": 9.0, "grad_norm": 1.0}
    monitor.send(batch(1, events=[finding(1, "info"), finding(2, "error"), skip, finding(4, "error")]))
    errors = monitor.tell("/events?type=finding&severity=error")["items"]
    assert [event["step"] for event in errors] == [2, 4]
    first = monitor.tell("/events?limit=2")["items"]
    rest = monitor.tell(f"/events?after={first[-1]['id']}")["items"]
    assert [event["step"] for event in rest] == [3, 4]
    newest = monitor.tell("/events?newest_first=true&limit=1")["items"]
    assert [event["step"] for event in newest] == [4]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_checkpoint_has_its_youngest_state_whatever_comes_last(
    monitor: Any, batch: Build, order: tuple[int, ...]
) -> None:
    key = {"type": "checkpoint", "step": 8, "checkpoint": "step-8"}
    changes = [
        {**key, "state": "sealed", "time": "2026-03-01T12:00:01Z", "size_bytes": 7, "seconds": 0.5},
        {**key, "state": "good", "time": "2026-03-01T12:00:02Z", "probe_loss": 0.25},
        {**key, "state": "bad", "time": "2026-03-01T12:00:03Z", "failed_check": "hashes"},
    ]
    for seq, index in enumerate(order, start=1):
        monitor.send(batch(seq, events=[changes[index]]))
    (told,) = monitor.tell("/checkpoints")["items"]
    assert told["state"] == "bad"
    assert (told["size_bytes"], told["probe_loss"], told["failed_check"]) == (7, 0.25, "hashes")
    assert monitor.tell("/health")["last_good_checkpoint"] is None


def test_the_api_describes_every_body_and_answer(monitor: Any) -> None:
    described = monitor.get("/openapi.json").json()
    schemas = described["components"]["schemas"]
    assert {"Batch", "RunSpec", "CommandRequest", "Reply", "RunDetail", "Finding"} <= set(schemas)
    body = described["paths"]["/api/v1/runs/{run}/exchange"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Batch"}


@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
def test_names_that_differ_only_in_case_crowd_nothing_out(monitor: Any, batch: Build) -> None:
    told = {"type": "change", "step": 1, "what": "lr_factor", "value": 0.5, "previous": 1.0, "reason": "r"}
    changes = [{**told, "incident": name} for name in ("NAN-1", "Nan-1", "nan-1")]
    assert monitor.send(batch(1, events=changes)).status_code == 200
    with monitor.monitor.store.reading() as connection:
        page = queries.events(connection, "demo", naming="nan-1", limit=2)
    assert [one.data["incident"] for one in page.items] == ["nan-1"]


def test_questions_that_hang_keep_no_batch_waiting(
    monitor: Any, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    health = queries.health

    def hang(*asked: Any) -> Any:
        assert go_on.wait(30)
        return health(*asked)

    monkeypatch.setattr(queries, "health", hang)
    asked = [monitor.start_get("/api/v1/runs/demo/health") for _ in range(40)]  # no executor has so many
    monitor.monitor.door.forget()  # the next request looks for its token in the database
    assert monitor.start_post("/api/v1/runs/demo/exchange", json=batch(1)).result(10).status_code == 200
    assert not any(one.done() for one in asked)
    go_on.set()
    assert {one.result(30).status_code for one in asked} == {200}
