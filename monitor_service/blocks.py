"""Blocks: about 1,000 steps of one attempt, packed small. Each holds an axis, and a chunk for each series.

The axis has the steps, their times and where each row came from; a chunk has the values of one series, and a
header that answers for them when a drawing needs no more. Whole numbers are stored as differences, doubles
byte by byte (all first bytes, then all second bytes), and zstd does the rest. Nothing is rounded: every bit
of every double comes back.
"""

import json
import struct
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor_service.rows import Bools, Floats, Ints, Rows, Values

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CODEC = 1
"""Written beside each block, so that another way to pack can come later."""

LEVEL = 3

HEADER = np.dtype(
    [
        ("count", "<u4"),
        ("nan", "<u4"),
        ("positive_infinite", "<u4"),
        ("negative_infinite", "<u4"),
        ("first_step", "<i8"),
        ("last_step", "<i8"),
        ("first_time", "<f8"),
        ("last_time", "<f8"),
        ("min", "<f8"),  # of finite values, as are max and sum; NaN where there is none
        ("max", "<f8"),
        ("sum", "<f8"),
        ("last", "<f8"),
    ]
)
"""What a header says about a chunk, 80 bytes. It is stored as bytes: an SQLite column has no NaN."""

NONFINITE = ("nan", "positive_infinite", "negative_infinite")

Headers = NDArray[np.void]
"""An array of ``HEADER``."""

_AXIS_HEAD = struct.Struct("<III")


def pack_axis(rows: Rows) -> bytes:
    """Steps, times and origins. Rows of one batch mostly stand together, so origins are stored as runs."""
    begins = _run_begins(rows)
    sessions = json.dumps(rows.sessions).encode()
    columns = [
        _pack_ints(rows.step),
        _shuffled(np.diff(np.ascontiguousarray(rows.time, "<f8").view("<i8"), prepend=np.int64(0))),
        _pack_ints(rows.session[begins]),
        _pack_ints(rows.seq[begins]),
        _pack_ints(np.diff(begins, append=len(rows))),
        sessions,
    ]
    head = _AXIS_HEAD.pack(len(rows), len(begins), len(sessions))
    return zstd.compress(head + b"".join(columns), LEVEL)


def unpack_axis(payload: bytes) -> Rows:
    """The rows of a block, with no series yet."""
    raw = zstd.decompress(payload)
    num_rows, num_runs, length = _AXIS_HEAD.unpack_from(raw)
    offset = _AXIS_HEAD.size
    step = _unpack_ints(raw, num_rows, offset)
    time = np.add.accumulate(_unshuffled(raw, num_rows, offset + 8 * num_rows, "<i8")).view("<f8")
    offset += 16 * num_rows
    session, seq, count = (_unpack_ints(raw, num_runs, offset + 8 * num_runs * n) for n in range(3))
    offset += 24 * num_runs
    sessions = tuple(json.loads(raw[offset : offset + length]))
    return Rows(step, time, sessions, np.repeat(session, count), np.repeat(seq, count), {})


def pack_values(values: Values) -> bytes:
    """The values that are there, and one bit a row that says where, unless they are everywhere."""
    is_full = bool(values.is_there.all())
    bits = b"" if is_full else np.packbits(values.is_there).tobytes()
    kept = np.ascontiguousarray(values.value[values.is_there], "<f8")
    return zstd.compress(bytes([is_full]) + bits + _shuffled(kept), LEVEL)


def unpack_values(payload: bytes, num_rows: int) -> Values:
    """What ``pack_values`` packed for a block of ``num_rows`` rows."""
    raw = zstd.decompress(payload)
    if raw[0]:
        return Values(_unshuffled(raw, num_rows, 1, "<f8"), np.ones(num_rows, bool))
    num_bytes = (num_rows + 7) // 8
    is_there = np.unpackbits(np.frombuffer(raw, np.uint8, num_bytes, 1), count=num_rows).astype(bool)
    value = np.zeros(num_rows)
    value[is_there] = _unshuffled(raw, int(is_there.sum()), 1 + num_bytes, "<f8")
    return Values(value, is_there)


def header_of(step: Ints, time: Floats, value: Floats) -> bytes:
    """The header of a chunk with at least one point, sorted by step."""
    finite = value[np.isfinite(value)]
    header = np.zeros((), HEADER)
    header["count"], header["nan"] = len(value), np.isnan(value).sum()
    header["positive_infinite"], header["negative_infinite"] = (
        (value == np.inf).sum(),
        (value == -np.inf).sum(),
    )
    header["first_step"], header["last_step"] = step[0], step[-1]
    header["first_time"], header["last_time"] = time[0], time[-1]
    header["min"] = finite.min() if len(finite) else np.nan
    header["max"] = finite.max() if len(finite) else np.nan
    with np.errstate(over="ignore"):  # the sum of finite numbers may be infinite
        header["sum"] = finite.sum() if len(finite) else np.nan
    header["last"] = value[-1]
    return header.tobytes()


def chunks_of(rows: Rows) -> dict[str, tuple[bytes, bytes]]:
    """Header and payload of each series that has a value in these sorted rows."""
    chunks = {}
    for name, values in rows.series.items():
        there: Bools = values.is_there
        if there.any():
            header = header_of(rows.step[there], rows.time[there], values.value[there])
            chunks[name] = (header, pack_values(values))
    return chunks


def with_chunks(axis: Rows, payloads: Mapping[str, bytes]) -> Rows:
    """The rows of a block with those series whose payloads are given."""
    series = {name: unpack_values(payload, len(axis)) for name, payload in payloads.items()}
    return Rows(axis.step, axis.time, axis.sessions, axis.session, axis.seq, series)


def _run_begins(rows: Rows) -> NDArray[np.intp]:
    """Where a row comes from another batch than the row before it."""
    is_other = (rows.session[1:] != rows.session[:-1]) | (rows.seq[1:] != rows.seq[:-1])
    return np.flatnonzero(np.concatenate([[True], is_other]))


def _pack_ints(numbers: NDArray[Any]) -> bytes:
    """Differences of differences: zeros, where steps are equally far apart. 64-bit sums wrap, both ways."""
    changes = np.diff(np.asarray(numbers, "<i8"), prepend=np.int64(0))
    return _shuffled(np.diff(changes, prepend=np.int64(0)))


def _unpack_ints(raw: bytes, count: int, offset: int) -> Ints:
    twice = _unshuffled(raw, count, offset, "<i8")
    return np.add.accumulate(np.add.accumulate(twice))


def _shuffled(numbers: NDArray[Any]) -> bytes:
    """Eight-byte numbers, first bytes first."""
    return np.ascontiguousarray(numbers).view(np.uint8).reshape(len(numbers), 8).T.tobytes()


def _unshuffled(raw: bytes, count: int, offset: int, kind: str) -> NDArray[Any]:
    """``count`` eight-byte numbers, their bytes in order again."""
    columns = np.frombuffer(raw, np.uint8, 8 * count, offset).reshape(8, count)
    return np.frombuffer(columns.tobytes("F"), kind)
