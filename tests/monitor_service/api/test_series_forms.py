"""Series in every form: along steps or time, as JSON, CSV or bytes, and several runs on one grid."""

import json
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor_service.axes import TimeGrid
from monitor_service.rows import Points
from monitor_service.series_forms import as_json, from_bytes
from monitor_service.views import RawColumns, RawSeries

Build = Callable[..., dict[str, Any]]
NOON_S = 1772366400.0
ODD = [0.1, "NaN", "Infinity", "-Infinity", -0.0, 5e-324, 1.7976931348623157e308]


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def test_bytes_carry_every_double_as_it_was(monitor: Any, batch: Build) -> None:
    steps = [0, 1, 2, 3, 4, 5, 2**53 + 1]
    monitor.send(batch(1, steps, loss=ODD))
    answer = monitor.get("/api/v1/runs/demo/series?name=loss&format=binary")
    assert answer.headers["content-type"] == "application/vnd.trainhealth.series"
    told = from_bytes(answer.content)["loss"]
    assert told["step"].tolist() == steps
    sent = [float(value) for value in ODD]
    assert [bits(value) for value in told["value"]] == [bits(value) for value in sent]
    assert told["attempt"].tolist() == [1] * 7


@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.floats(), st.floats()), max_size=20))
def test_json_from_arrays_says_what_the_model_says(rows: list[tuple[int, float, float]]) -> None:
    step, time, value = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    some = Points(np.ones(len(step), int), np.array(step, np.int64), np.array(time, float), np.array(value))
    text = as_json("demo", "effective", {"loss": vars(some)})
    columns = RawColumns(attempt=[1] * len(step), step=step, time=time, value=value)
    model = RawSeries(run="demo", attempt="effective", series={"loss": columns})
    assert json.loads(text) == json.loads(model.model_dump_json())
    again = RawSeries.model_validate_json(text).series["loss"].value
    assert [bits(one) for one in again if not math.isnan(one)] == [
        bits(v) for v in value if not math.isnan(v)
    ]


def test_csv_has_a_line_for_each_point(monitor: Any, batch: Build) -> None:
    monitor.send(batch(1, [1, 2], loss=[0.1, "NaN"], grad_norm=["-Infinity", None]))
    answer = monitor.get("/api/v1/runs/demo/series?name=loss&name=grad_norm&format=csv")
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.text.splitlines() == [
        "series,attempt,step,time,value",
        f"loss,1,1,{NOON_S + 1},0.1",
        f"loss,1,2,{NOON_S + 2},NaN",
        f"grad_norm,1,1,{NOON_S + 1},-Infinity",
    ]


@pytest.mark.parametrize("axis", ["step", "time"])
def test_buckets_travel_in_every_form(monitor: Any, batch: Build, axis: str) -> None:
    monitor.send(batch(1, range(100), loss=[*range(99), "NaN"]))
    query = f"/series?name=loss&buckets=4&axis={axis}"
    told = monitor.tell(query)["series"]["loss"]
    assert told["count"] == [25] * 4
    assert told["nonfinite"] == [0, 0, 0, 1]
    assert (told["min"], told["max"]) == ([0, 25, 50, 75], [24, 49, 74, 98])
    data = monitor.get(f"/api/v1/runs/demo{query}&format=binary").content
    assert from_bytes(data)["loss"]["max"].tolist() == told["max"]
    lines = monitor.get(f"/api/v1/runs/demo{query}&format=csv").text.splitlines()
    assert lines[0] == f"series,{axis}_from,{axis}_to,min,max,last,count,nonfinite"
    assert lines[-1].endswith(",75.0,98.0,NaN,25,1")


def test_a_bucket_without_a_finite_value_is_empty_in_csv_and_nan_in_bytes(monitor: Any, batch: Build) -> None:
    monitor.send(batch(1, [1], loss=["NaN"]))
    query = "/api/v1/runs/demo/series?name=loss&buckets=1"
    assert monitor.get(f"{query}&format=csv").text.splitlines()[1] == "loss,1,1,,,NaN,1,1"
    assert math.isnan(from_bytes(monitor.get(f"{query}&format=binary").content)["loss"]["min"][0])


def test_along_time_a_rollback_stays_where_it_happened(monitor: Any, batch: Build) -> None:
    monitor.send(batch(1, range(10), loss=[1.0] * 10))
    again = {"type": "attempt_started", "step": 5, "attempt": 2, "reason": "rollback"}
    later = batch(2, range(5, 8), attempt=2, loss=[2.0] * 3, events=[again])
    later["columns"]["time"] = [NOON_S + 100 + step for step in range(5, 8)]
    monitor.send(later)
    told = monitor.tell("/series?name=loss&axis=time&attempt=all")["series"]["loss"]
    assert told["value"] == [1.0] * 10 + [2.0] * 3
    assert told["time"] == sorted(told["time"])
    query = f"/series?name=loss&axis=time&attempt=all&from_time={NOON_S + 9}&to_time={NOON_S + 105}"
    assert monitor.tell(query)["series"]["loss"]["step"] == [9, 5]


def test_times_out_of_order_or_out_of_range_do_not_break_buckets() -> None:
    times = np.array([3.0, 1.0, 2.0, -1.7e308, 1.7e308])
    points = Points(np.ones(5, np.int64), np.arange(5), np.sort(times), np.arange(5.0))
    cells = TimeGrid.over(points, 3).gather(points, 3)
    assert cells.count.sum() == 5
    same = Points(np.ones(2, np.int64), np.arange(2), np.array([5.0, 5.0]), np.arange(2.0))
    assert TimeGrid.over(same, 7).gather(same, 7).count.tolist() == [2]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("name=loss&from_time=1", ("query.axis", "axis=time")),
        ("name=loss&from_step=9&to_step=3", ("query.from_step", "to_step (3)")),
        ("name=loss&axis=time&from_time=nan", ("from_time",)),
        ("name=loss&axis=epoch", ("axis", "epoch")),
        ("name=loss&format=xml", ("format", "xml")),
        ("name=loss&buckets=0", ("buckets",)),
        ("name=loss&buckets=4&attempt=all", ("attempt", "effective")),
        ("name=loss&buckets=4&attempt=all&axis=time", ("attempt", "effective")),
        ("name=loss&attempt=-1", ("attempt", "-1")),
        ("", ("name", "Field required")),
    ],
)
def test_a_question_that_contradicts_itself_is_422(
    monitor: Any, batch: Build, query: str, words: tuple[str, ...]
) -> None:
    monitor.send(batch(1, [1], loss=[1]))
    answer = monitor.get(f"/api/v1/runs/demo/series?{query}")
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert all(word in answer.text for word in words), answer.text


def test_runs_side_by_side_share_one_grid(monitor: Any, batch: Build) -> None:
    for name, rate, first in (("a", 0.1, 0), ("b", 0.2, 50)):
        config = {"lr": {"base": rate}, "seed": 1, **({"note": name} if name == "b" else {})}
        monitor.register(name, config=config)
        steps = range(first, first + 50)
        monitor.send(batch(1, steps, loss=[float(step) for step in steps]), run=name)
    monitor.send(batch(2, [100], only_b=[1.0]), run="b")
    told = monitor.get("/api/v1/compare?run=a&run=b&name=loss&name=only_b&buckets=11").json()
    assert [run["run"] for run in told["runs"]] == ["a", "b"]
    assert told["differences"] == {"lr.base": {"a": 0.1, "b": 0.2}, "note": {"b": "b"}}
    assert told["grid"]["step_from"] == list(range(0, 110, 10))
    assert told["series"]["loss"]["a"]["cell"] == [0, 1, 2, 3, 4]
    assert told["series"]["loss"]["b"]["cell"] == [5, 6, 7, 8, 9]
    assert told["series"]["loss"]["b"]["min"] == [50, 60, 70, 80, 90]
    assert list(told["series"]["only_b"]) == ["b"]


@pytest.mark.parametrize(
    ("query", "status", "word"),
    [
        ("run=demo&name=loss", 422, "run"),
        ("run=demo&run=demo&name=loss", 422, "once"),
        ("run=demo&run=nobody&name=loss", 404, "nobody"),
        ("run=demo&run=other&name=lose", 404, "lose"),
        ("run=demo&run=other&name=loss&buckets=9999", 422, "buckets"),
    ],
)
def test_a_comparison_of_what_is_not_there_says_so(monitor: Any, query: str, status: int, word: str) -> None:
    monitor.register("other")
    answer = monitor.get(f"/api/v1/compare?{query}")
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert word in answer.text
