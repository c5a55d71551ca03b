"""The messages keep what they are given: numbers, NaN, texts like numbers, and events of tomorrow."""

import math
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.commands import CommandKind, CommandRequest
from shared.events import Finding, OpaqueEvent, Severity
from shared.exchange import Batch, Columns, RunSpec


def batch(**more: object) -> Batch:
    return Batch.model_validate({"session": "a", "seq": 1, "attempt": 1, **more})


def finding(reading: dict[str, float | str]) -> Finding:
    return Finding(step=0, guard="g", severity=Severity.ERROR, message="m", reading=reading)


def sent(message: Batch) -> Batch:
    return Batch.model_validate_json(message.model_dump_json())


@example([-0.0, 5e-324, 1.7976931348623157e308, math.inf])
@given(st.lists(st.floats(allow_nan=False), max_size=8))
def test_every_double_arrives_as_it_left(values: list[float]) -> None:
    steps = list(range(len(values)))
    columns = Columns(step=steps, time=[0.0] * len(steps), series={"loss": list(values)})
    arrived = sent(batch(columns=columns)).columns.series["loss"]
    assert [struct.pack("<d", value) for value in arrived if value is not None] == [
        struct.pack("<d", value) for value in values
    ]


def test_nan_and_infinity_travel_as_words() -> None:
    columns = Columns(step=[0, 1, 2], time=[0, 0, 0], series={"loss": [math.nan, math.inf, -math.inf]})
    text = batch(columns=columns).model_dump_json()
    assert '["NaN","Infinity","-Infinity"]' in text
    nan, plus, minus = Batch.model_validate_json(text).columns.series["loss"]
    assert math.isnan(nan or 0.0)
    assert (plus, minus) == (math.inf, -math.inf)


@pytest.mark.parametrize("text", ["12_3", "1e5", "nan", "inf", "7", "Infinity "])
def test_a_text_that_looks_like_a_number_stays_a_text(text: str) -> None:
    arrived = sent(batch(events=[finding({"sample": text})])).events[0]
    assert isinstance(arrived, Finding)
    assert arrived.reading == {"sample": text}


def test_a_reading_keeps_nan_and_numbers() -> None:
    arrived = sent(batch(events=[finding({"loss": math.nan, "norm": 2, "top": math.inf})])).events[0]
    assert isinstance(arrived, Finding)
    assert math.isnan(float(arrived.reading["loss"]))
    assert (arrived.reading["norm"], arrived.reading["top"]) == (2.0, math.inf)


def test_an_event_of_tomorrow_is_kept_whole() -> None:
    event = {"type": "teleported", "step": 3, "time": "2026-01-01T00:00:00Z", "where": {"x": 1}}
    arrived = sent(batch(events=[event])).events[0]
    assert isinstance(arrived, OpaqueEvent)
    assert arrived.model_dump(mode="json") == event


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"step": [0, 1], "time": [0.0]}, "time has 1 values for 2 steps"),
        ({"step": [0], "time": [0.0], "series": {"loss": []}}, "series 'loss' has 0 values for 1 steps"),
        ({"step": [1, 1], "time": [0.0, 0.0]}, "step 1 follows step 1"),
        ({"step": [-1], "time": [0.0]}, "step -1 is negative"),
        ({"step": [0], "time": [0.0], "series": {"a b": [1.0]}}, "should match pattern"),
    ],
)
def test_columns_that_do_not_fit_are_refused_with_the_reason(columns: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Columns.model_validate(columns)


def test_only_a_rollback_has_a_goal() -> None:
    with pytest.raises(ValidationError, match="to_step goes with roll_back only"):
        CommandRequest(kind=CommandKind.STOP, reason="r", to_step=3)


@pytest.mark.parametrize("moment", ["2026-01-01T00:00:00", "0001-01-01T00:00:00+14:00"])
def test_a_time_without_a_zone_or_out_of_range_is_refused(moment: str) -> None:
    with pytest.raises(ValidationError, match=r"zone|out of range"):
        RunSpec.model_validate({"started_at": moment})
