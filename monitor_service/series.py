"""Series: how a request's columns become one blob, and how blobs become the series that a reader sees.

A blob is zstd over little-endian arrays: a JSON header with its length before it, ``step`` (int64), ``time``
(float64), then for each series its values (float64) and, if it has gaps, one bit a row that says where a
value is. No number is converted, so every double comes back as it was: NaN, infinities, -0.0, subnormals.
"""

import hashlib
import json
import struct
import sys
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from monitor_service.blocks import HEADER, NONFINITE, Headers
from monitor_service.rows import Floats, Ints, Points, Rows, Values
from shared.exchange import Columns

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CODEC_ZSTD = 1
"""Written beside each blob, so that another way to pack can come later."""

LEVEL = 1
"""What comes is soon packed anew (``blocks``); a higher level takes twice the time for a twentieth less."""

_LENGTH = struct.Struct("<I")
_of_thread = threading.local()


@dataclass(frozen=True)
class Packed:
    """A request's columns, ready to be stored."""

    payload: bytes
    digest: bytes
    """Of the columns before compression, 16 bytes."""


def pack(columns: Columns) -> Packed:
    """Turn columns into a blob. Steps must fit into 63 bits."""
    rows = len(columns.step)
    doubles = _doubles(rows)
    header: list[tuple[str, bool]] = []
    arrays = [struct.pack(f"<{rows}q", *columns.step), doubles.pack(*columns.time)]
    for name, values in sorted(columns.series.items()):
        has_gaps = None in values
        header.append((name, has_gaps))
        filled = [0.0 if value is None else value for value in values] if has_gaps else values
        arrays.append(doubles.pack(*filled))
        if has_gaps:
            arrays.append(np.packbits([value is not None for value in values]).tobytes())
    raw = b"".join([_head(rows, tuple(header)), *arrays])
    return Packed(_compressed(raw), hashlib.blake2b(raw, digest_size=16).digest())


@lru_cache(maxsize=128)
def _head(rows: int, series: tuple[tuple[str, bool], ...]) -> bytes:
    """The same one comes with every batch of a run."""
    head = json.dumps({"rows": rows, "series": series}).encode()
    return _LENGTH.pack(len(head)) + head


@lru_cache(maxsize=64)
def _doubles(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}d")


def _compressed(raw: bytes) -> bytes:
    """As one frame. Each thread keeps its compressor: making one costs more than using it on a small blob."""
    if not hasattr(_of_thread, "compressor"):
        _of_thread.compressor = zstd.ZstdCompressor(LEVEL)
    compressor: zstd.ZstdCompressor = _of_thread.compressor
    return compressor.compress(raw, zstd.ZstdCompressor.FLUSH_FRAME)


def unpack(payload: bytes, session: str, seq: int, names: Collection[str] | None = None) -> Rows:
    """The rows of a blob, with those of its series that are in ``names``, or with all."""
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
        is_there = np.ones(rows, bool)
        if has_gaps:
            num_bytes = (rows + 7) // 8
            bits = np.frombuffer(raw, np.uint8, num_bytes, offset)
            is_there = np.unpackbits(bits, count=rows).astype(bool)
            offset += num_bytes
        if names is None or name in names:
            found[name] = Values(value, is_there)
    return Rows(step, time, (session,), np.zeros(rows, np.int64), np.full(rows, seq), found)


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


def gather(headers: Headers, points: Points, buckets: int) -> Buckets:
    """At most ``buckets`` ranges of equally many steps; empty ones are left out.

    A chunk belongs to the range that its first step is in: where it reaches beyond, the edge moves with it.
    Single points never do.

    Args:
        headers: of chunks that are told whole.
        points: what lies between them, sorted by step.
    """
    if not len(headers) and not len(points.step):
        nothing, empty = np.empty(0, np.int64), np.empty(0)
        return Buckets(nothing, nothing, empty, empty, empty, nothing, nothing)
    first = min(int(one.min()) for one in (headers["first_step"], points.step) if len(one))
    last = max(int(one.max()) for one in (headers["last_step"], points.step) if len(one))
    width = -(-(last - first + 1) // buckets)
    index, pools = pooled(headers, points, first, width)
    step_from = first + index * width
    step_to = np.maximum(np.minimum(step_from + (width - 1), last), pools["last_step"])
    step_from[1:] = np.maximum(step_from[1:], step_to[:-1] + 1)
    return Buckets(step_from, step_to, *columns_of(pools))


def pooled(headers: Headers, points: Points, first: int, width: int) -> tuple[Ints, Headers]:
    """Ranges of ``width`` steps from ``first`` on that hold something: their numbers, and a header for each.

    In it ``nan`` counts whatever is not finite; ``first_time``, ``last_time`` and ``sum`` say nothing.
    """
    headers = np.concatenate([headers, _cells(points, headers["first_step"], first, width)])
    headers = headers[np.argsort(headers["first_step"], kind="stable")]
    index = np.maximum(headers["first_step"] - first, 0) // width
    begins = np.flatnonzero(np.diff(index, prepend=-1))
    pools = np.zeros(len(begins), HEADER)
    if len(begins):
        pools["first_step"] = headers["first_step"][begins]
        pools["last_step"] = np.maximum.reduceat(headers["last_step"], begins)
        pools["min"] = np.fmin.reduceat(headers["min"], begins)
        pools["max"] = np.fmax.reduceat(headers["max"], begins)
        pools["last"] = headers["last"][_ends(begins, len(headers))]
        pools["count"] = np.add.reduceat(headers["count"].astype(np.int64), begins)
        nonfinite = sum(headers[kind].astype(np.int64) for kind in NONFINITE)
        pools["nan"] = np.add.reduceat(nonfinite, begins)
    return index[begins], pools


def columns_of(pools: Headers) -> tuple[Floats, Floats, Floats, Ints, Ints]:
    """``min``, ``max``, ``last``, ``count`` and ``nonfinite`` of what ``pooled`` found."""
    count, nonfinite = pools["count"].astype(np.int64), pools["nan"].astype(np.int64)
    return pools["min"], pools["max"], pools["last"], count, nonfinite


def _cells(points: Points, chunks: Ints, first: int, width: int) -> Headers:
    """Points as headers of chunks that cross no border of a range, and no first step of ``chunks``."""
    step = points.step
    if not len(step):
        return np.empty(0, HEADER)
    is_begin = np.diff((step - first) // width, prepend=-1) != 0
    places = np.searchsorted(step, chunks)
    is_begin[places[places < len(step)]] = True
    begins = np.flatnonzero(is_begin)
    ends = _ends(begins, len(step))
    is_finite = np.isfinite(points.value)
    finite = np.where(is_finite, points.value, np.nan)
    cells = np.zeros(len(begins), HEADER)
    cells["first_step"], cells["last_step"] = step[begins], step[ends]
    cells["min"], cells["max"] = np.fmin.reduceat(finite, begins), np.fmax.reduceat(finite, begins)
    cells["last"] = points.value[ends]
    cells["count"] = ends - begins + 1
    cells["nan"] = np.add.reduceat(~is_finite, begins, dtype=np.int64)  # only the sum of the three is told
    return cells


def _ends(begins: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """The last place of each stretch."""
    return np.append(begins[1:], count) - 1
