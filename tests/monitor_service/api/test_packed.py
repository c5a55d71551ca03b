"""The binary form: the same batch as in JSON, bit by bit, and refused as clearly."""

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor_service.api import packed
from monitor_service.api.body import PACKED, parse
from monitor_service.errors import BadBody
from shared.exchange import Batch

Build = Callable[..., dict[str, Any]]
EXCHANGE = "/api/v1/runs/demo/exchange"
BINARY = {"Content-Type": PACKED}
QUIET_NAN = struct.unpack("<d", b"\1\0\0\0\0\0\xf8\x7f")[0]
ODD = (QUIET_NAN, math.inf, -math.inf, -0.0, 5e-324, 1.5)


def floats(values: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(values)}d", *values)


def as_bytes(batch: Mapping[str, Any]) -> bytes:
    """The batch with its columns as bytes."""
    columns = batch["columns"]
    series: dict[str, Any] = {}
    for name, values in columns["series"].items():
        there = [value is not None for value in values]
        series[name] = {
            "value": floats([value if value is not None else 0.0 for value in values]),
            "there": np.packbits(there).tobytes(),
        }
        if all(there):
            series[name] = series[name]["value"]
    step = struct.pack(f"<{len(columns['step'])}q", *columns["step"])
    told = {**batch, "columns": {"step": step, "time": floats(columns["time"]), "series": series}}
    return bytes(msgpack.packb(told))


def send(monitor: Any, body: bytes, **headers: str) -> Any:
    return monitor.post(EXCHANGE, content=body, headers={**BINARY, **headers})


def test_every_double_and_large_steps_arrive_as_they_left(monitor: Any, batch: Build) -> None:
    steps = [0, 7, 2**53 + 1, 2**53 + 2, 2**62, 2**63 - 1]
    told = batch(1, steps, loss=list(ODD), val=[None, 1.0, None, None, 2.0, None])
    assert send(monitor, as_bytes(told)).json()["duplicate"] is False
    found = {name: monitor.tell(f"/series?name={name}")["series"][name] for name in ("loss", "val")}
    assert (found["loss"]["step"], found["val"]["step"]) == (steps, [7, 2**62])
    assert found["loss"]["value"][:3] == ["NaN", "Infinity", "-Infinity"]
    assert [str(value) for value in found["loss"]["value"][3:]] == ["-0.0", "5e-324", "1.5"]


def test_the_bits_of_a_nan_survive_unpacking(batch: Build) -> None:
    loss = parse(Batch, as_bytes(batch(1, range(6), loss=list(ODD))), PACKED).columns.series["loss"]
    assert floats([value for value in loss if value is not None]) == floats(ODD)


def test_a_batch_repeated_in_the_other_form_changes_nothing(monitor: Any, batch: Build) -> None:
    told = batch(1, [1, 2], loss=[1.5, None])
    assert monitor.send(told).json()["duplicate"] is False
    assert send(monitor, as_bytes(told)).json()["duplicate"] is True


@pytest.mark.parametrize("kind", [PACKED, "application/json"])
def test_zstd_is_read_and_a_damaged_one_or_a_bomb_is_refused(monitor: Any, batch: Build, kind: str) -> None:
    told = batch(1, [1], loss=[1.5])
    body = as_bytes(told) if kind == PACKED else json.dumps(told).encode()
    whole = zstd.compress(body)
    headers = {"Content-Type": kind, "Content-Encoding": "zstd"}

    def post(content: bytes) -> int:
        return int(monitor.post(EXCHANGE, content=content, headers=headers).status_code)

    assert [post(whole[:-3]), post(whole + b"x"), post(body), post(zstd.compress(bytes(200_000_000)))] == [
        400,
        400,
        400,
        413,
    ]
    assert monitor.tell()["step"] is None
    assert post(whole) == 200


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"step": b"1234567"}, 400, "columns.step has 7 bytes"),
        ({"series": {"loss": floats([1.0, 2.0, 3.0])}}, 422, "has 3 values for 2 steps"),
        ({"series": {"loss": {"value": floats([1.0, 2.0])}}}, 400, "without value and there"),
        ({"series": {"loss": {"value": floats([1.0, 2.0]), "there": b""}}}, 400, "0 bytes for 2 values"),
        ({"step": struct.pack("<2q", 2, 1)}, 422, "step 1 follows step 2"),
        ({"step": struct.pack("<2q", -2, 1)}, 422, "negative"),
        ({"time": "yesterday"}, 422, "columns.time"),
    ],
)
def test_a_wrong_column_is_named(
    monitor: Any, batch: Build, change: dict[str, Any], status: int, words: str
) -> None:
    told = msgpack.unpackb(as_bytes(batch(1, [1, 2], loss=[1.0, 2.0])))
    told["columns"] |= change
    answer = send(monitor, msgpack.packb(told))
    assert answer.status_code == status
    assert words in answer.text
    assert monitor.tell()["step"] is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x81",
        b"{}",
        b"\xdd\xff\xff\xff\xff",  # a list of four thousand million
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 5000,
        b"\xc7\x01\x05x",  # an extension
        b"\xa1\xff",  # no UTF-8
    ],
)
def test_what_is_no_message_is_refused(monitor: Any, body: bytes) -> None:
    answer = send(monitor, body)
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"


@settings(max_examples=200)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_refused(body: bytes) -> None:
    try:
        packed.unpack(body)
    except packed.Unreadable:
        return
    with pytest.raises(BadBody):
        parse(Batch, body, PACKED)


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize(
    ("odd", "words"),
    [(b"\xff", "holds bytes"), ({b"\xff": 1}, "holds bytes"), ({"a": nested(300)}, "nested deeper than 100")],
)
def test_what_json_could_not_say_is_refused_outside_of_the_columns(
    monitor: Any, batch: Build, odd: Any, words: str
) -> None:
    told = batch(1, events=[{"type": "odd", "step": 1, "more": odd}])
    answer = send(monitor, msgpack.packb(told))
    assert (answer.status_code, words in answer.text) == (400, True), answer.text
    spec = {"started_at": "2026-03-01T12:00:00Z", "config": {"odd": odd}}
    answer = monitor.put("/api/v1/runs/new", content=msgpack.packb(spec), headers=BINARY)
    assert (answer.status_code, words in answer.text) == (400, True), answer.text
