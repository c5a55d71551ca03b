"""The binary form of a message: MessagePack, in which a column may be the bytes of its numbers.

``columns.step`` is little-endian int64, ``columns.time`` and each of ``columns.series`` float64. A series
with gaps is a map of ``value`` (for every row) and ``there`` (one bit a row, first row in the highest bit).
Unlike in JSON every NaN keeps its bits.
"""

from typing import Any

import msgpack
import numpy as np

from shared.exchange import MAX_STEPS

MAX_ENTRIES = 100_000
"""In one list or map: the reader makes room for as many as are announced before it has seen them."""

MAX_DEPTH = 100
"""Of lists and maps in each other; what is much deeper is written down as JSON no more."""

MAX_TEXT_BYTES = 1024 * 1024
NUMBER_BYTES = 8


class Unreadable(ValueError):
    """The bytes are no such message; the words say why."""


def unpack(body: bytes) -> Any:
    """The message as plain objects, with lists for its columns. Raises Unreadable."""
    try:
        told = msgpack.unpackb(
            body,
            max_array_len=MAX_ENTRIES,
            max_map_len=MAX_ENTRIES,
            max_str_len=MAX_TEXT_BYTES,
            max_bin_len=NUMBER_BYTES * MAX_STEPS,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise Unreadable(f"{error or type(error).__name__}") from error
    if not isinstance(told, dict):
        return told
    for name, value in told.items():
        if name == "columns" and isinstance(value, dict):
            told[name] = _columns(value)
        else:
            _refuse_unwritable(value, f"{name!s:.80}", MAX_DEPTH)
    return told


def _refuse_unwritable(told: Any, where: str, depth: int) -> None:
    """Outside of the columns is what JSON could have said as well: it is kept as JSON."""
    if isinstance(told, bytes):
        raise Unreadable(f"{where} holds bytes; only columns may, send a text")
    if not isinstance(told, dict | list):
        return
    if not depth:
        raise Unreadable(f"{where} is nested deeper than {MAX_DEPTH}")
    for inner in [*told, *told.values()] if isinstance(told, dict) else told:
        _refuse_unwritable(inner, where, depth - 1)


def _columns(told: dict[Any, Any]) -> dict[Any, Any]:
    columns = {**told}
    if isinstance(columns.get("step"), bytes):
        columns["step"] = _numbers(columns["step"], "<i8", "columns.step").tolist()
    if isinstance(columns.get("time"), bytes):
        columns["time"] = _numbers(columns["time"], "<f8", "columns.time").tolist()
    if isinstance(columns.get("series"), dict):
        columns["series"] = {name: _series(name, one) for name, one in columns["series"].items()}
    return columns


def _series(name: Any, told: Any) -> Any:
    where = f"columns.series.{name!s:.80}"
    if isinstance(told, bytes):
        return _numbers(told, "<f8", where).tolist()
    if isinstance(told, dict):
        return _with_gaps(told, where)
    return told


def _with_gaps(told: dict[Any, Any], where: str) -> list[float | None]:
    value, there = told.get("value"), told.get("there")
    if set(told) != {"value", "there"} or not isinstance(value, bytes) or not isinstance(there, bytes):
        raise Unreadable(f"{where} is a map without value and there, both bytes")
    values = _numbers(value, "<f8", where)
    if len(there) != (len(values) + 7) // 8:
        raise Unreadable(f"{where}.there has {len(there)} bytes for {len(values)} values")
    bits = np.unpackbits(np.frombuffer(there, np.uint8), count=len(values))
    return [one if bit else None for one, bit in zip(values.tolist(), bits.tolist(), strict=True)]


def _numbers(raw: bytes, kind: str, where: str) -> Any:
    if len(raw) % NUMBER_BYTES:
        raise Unreadable(f"{where} has {len(raw)} bytes; a number takes {NUMBER_BYTES}")
    return np.frombuffer(raw, kind)
