"""Series: how a request's columns become one blob, and how blobs become the series that a reader sees.

A blob is zstd over little-endian arrays: a JSON header with its length before it, ``step`` (int64), ``time``
(float64), then for each series its values (float64) and, if it has gaps, one bit a row that says where a
value is. No number is converted, so every double comes back as it was: NaN, infinities, -0.0, subnormals.
"""

import hashlib
import json
import struct
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.exchange import Columns

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CODEC_ZSTD = 1
"""Written beside each blob, so that another way to pack can come later."""

LEVEL = 3

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Packed:
    """A request's columns, ready to be stored."""

    payload: bytes
    digest: bytes
    """Of the columns before compression, 16 bytes."""


def pack(columns: Columns) -> Packed:
    """Turn columns into a blob. Steps must fit into 63 bits."""
    header: list[tuple[str, bool]] = []
    arrays = [np.array(columns.step, "<i8").tobytes(), np.array(columns.time, "<f8").tobytes()]
    for name, values in sorted(columns.series.items()):
        has_gaps = None in values
        header.append((name, has_gaps))
        filled = [0.0 if value is None else value for value in values] if has_gaps else values
        arrays.append(np.array(filled, "<f8").tobytes())
        if has_gaps:
            arrays.append(np.packbits([value is not None for value in values]).tobytes())
    head = json.dumps({"rows": len(columns.step), "series": header}).encode()
    raw = b"".join([_LENGTH.pack(len(head)), head, *arrays])
    return Packed(zstd.compress(raw, LEVEL), hashlib.blake2b(raw, digest_size=16).digest())


@dataclass(frozen=True)
class Points:
    """Points of one series in the order of steps (of attempts first, where several are kept)."""

    attempt: Ints
    step: Ints
    time: Floats
    value: Floats


def unpack(payload: bytes, attempt: int, names: Collection[str]) -> dict[str, Points]:
    """The points of those series in ``names`` that the blob holds; rows without a value are left out."""
    raw = zstd.decompress(payload)
    (length,) = _LENGTH.unpack_from(raw)
    head = json.loads(raw[_LENGTH.size : _LENGTH.size + length])
    rows, offset = head["rows"], _LENGTH.size + length
    step = np.frombuffer(raw, "<i8", rows, offset)
    time = np.frombuffer(raw, "<f8", rows, offset + 8 * rows)
    offset += 16 * rows
    found = {}
    for name, has_gaps in head["series"]:
        value = np.frombuffer(raw, "<f8", rows, offset)
        offset += 8 * rows
        present: Any = slice(None)
        if has_gaps:
            num_bytes = (rows + 7) // 8
            bits = np.frombuffer(raw, np.uint8, num_bytes, offset)
            present = np.unpackbits(bits, count=rows).astype(bool)
            offset += num_bytes
        if name in names:
            kept = value[present]
            found[name] = Points(np.full(len(kept), attempt), step[present], time[present], kept)
    return found


def join(parts: Sequence[Points]) -> Points:
    """Parts of one series as one, sorted by attempt and step; of a step sent twice the later part counts."""
    if not parts:
        nothing = np.empty(0, np.int64)
        return Points(nothing, nothing, np.empty(0), np.empty(0))
    attempt, step, time, value = (
        np.concatenate([getattr(part, column) for part in parts])
        for column in ("attempt", "step", "time", "value")
    )
    order = np.lexsort((step, attempt))  # stable: equal steps stay in the order of the parts
    attempt, step, time, value = attempt[order], step[order], time[order], value[order]
    is_last = np.ones(len(step), bool)
    is_last[:-1] = (step[1:] != step[:-1]) | (attempt[1:] != attempt[:-1])
    return Points(attempt[is_last], step[is_last], time[is_last], value[is_last])


def within(points: Points, from_step: int | None, to_step: int | None) -> Points:
    """Points from one step to another, both included."""
    return _where(points, _in_range(points.step, from_step, to_step))


def _in_range(step: Ints, from_step: int | None, to_step: int | None) -> Bools:
    kept = np.ones(len(step), bool)
    if from_step is not None:
        kept &= step >= from_step
    if to_step is not None:
        kept &= step <= to_step
    return kept


def _where(points: Points, kept: Bools) -> Points:
    return Points(points.attempt[kept], points.step[kept], points.time[kept], points.value[kept])


@dataclass(frozen=True)
class Stretch:
    """Steps ``first`` to ``last`` (both included; ``None``: without end) of one attempt."""

    attempt: int
    first: int
    last: int | None


def effective_stretches(starts: Iterable[tuple[int, int]]) -> list[Stretch]:
    """Which attempt speaks for which steps: for each step the highest attempt that begins at or before it.

    Args:
        starts: ``(attempt, start_step)`` of every attempt.
    """
    stretches: list[Stretch] = []
    bound: int | None = None
    for attempt, start in sorted(starts, reverse=True):
        if bound is None or start < bound:
            stretches.append(Stretch(attempt, start, None if bound is None else bound - 1))
            bound = start
    return stretches[::-1]


def effective(points: Points, stretches: Iterable[Stretch]) -> Points:
    """Points of all attempts, without the abandoned ones; sorted by step."""
    kept = np.zeros(len(points.step), bool)
    for stretch in stretches:
        kept |= (points.attempt == stretch.attempt) & _in_range(points.step, stretch.first, stretch.last)
    alive = _where(points, kept)
    order = np.argsort(alive.step, kind="stable")
    return _where_order(alive, order)


def _where_order(points: Points, order: NDArray[np.intp]) -> Points:
    return Points(points.attempt[order], points.step[order], points.time[order], points.value[order])


@dataclass(frozen=True)
class Buckets:
    """Points gathered by ranges of steps; ``min`` and ``max`` are NaN where no value is finite."""

    step_from: Ints
    step_to: Ints
    min: Floats
    max: Floats
    last: Floats
    count: Ints
    nonfinite: Ints


def gather(points: Points, buckets: int) -> Buckets:
    """At most ``buckets`` ranges of equally many steps, of points sorted by step; empty ones are left out."""
    if not len(points.step):
        nothing, empty = np.empty(0, np.int64), np.empty(0)
        return Buckets(nothing, nothing, empty, empty, empty, nothing, nothing)
    first, last = int(points.step[0]), int(points.step[-1])
    width = -(-(last - first + 1) // buckets)
    bucket = (points.step - first) // width
    begins = np.flatnonzero(np.diff(bucket, prepend=-1))
    is_finite = np.isfinite(points.value)
    count = np.diff(begins, append=len(bucket))
    finite = np.add.reduceat(is_finite.astype(np.int64), begins)
    low = np.minimum.reduceat(np.where(is_finite, points.value, np.inf), begins)
    high = np.maximum.reduceat(np.where(is_finite, points.value, -np.inf), begins)
    step_from = first + bucket[begins] * width
    return Buckets(
        step_from=step_from,
        step_to=np.minimum(step_from + (width - 1), last),
        min=np.where(finite > 0, low, np.nan),
        max=np.where(finite > 0, high, np.nan),
        last=points.value[begins + count - 1],
        count=count,
        nonfinite=count - finite,
    )
