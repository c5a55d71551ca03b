"""Blocks: about 1,000 steps of one attempt, packed small. Each holds an axis, and a chunk for each series.

The axis has the steps, their times and where each row came from; a chunk has the values of one series, and a
header that answers for them when a drawing needs no more. Whole numbers are stored as differences, doubles
byte by byte (all first bytes, then all second bytes), and zstd does the rest. Nothing is rounded: every bit
of every double comes back.
"""

import json
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
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


def unpack(axes: Sequence[bytes], payloads: Mapping[str, Sequence[bytes | None]]) -> Rows:
    """The rows of some blocks, one block behind another.

    Args:
        payloads: of each series its chunk in each block, ``None`` where it has none.
    """
    axis, num_rows = _unpack_axes(axes)
    return replace(axis, series={name: _unpack_values(some, num_rows) for name, some in payloads.items()})


def _unpack_axes(axes: Sequence[bytes]) -> tuple[Rows, Sequence[int]]:
    """Rows with no series yet, and how many are of each block."""
    raws = [zstd.decompress(axis) for axis in axes]
    heads = [_AXIS_HEAD.unpack_from(raw) for raw in raws]
    num_rows, num_runs, lengths = (list(column) for column in zip(*heads, strict=True))
    steps, times, ends = ([_AXIS_HEAD.size + 8 * rows * n for rows in num_rows] for n in range(3))
    step = _unpack_ints(raws, num_rows, steps)
    time = _summed(_unshuffled(raws, num_rows, times, "<i8"), num_rows).view("<f8")
    session, seq, count = (
        _unpack_ints(raws, num_runs, [end + 8 * runs * n for end, runs in zip(ends, num_runs, strict=True)])
        for n in range(3)
    )
    begins = [end + 24 * runs for end, runs in zip(ends, num_runs, strict=True)]
    texts = [raw[begin : begin + length] for raw, begin, length in zip(raws, begins, lengths, strict=True)]
    sessions, session = _numbered_alike(texts, session, num_runs)
    return Rows(step, time, sessions, np.repeat(session, count), np.repeat(seq, count), {}), num_rows


def _numbered_alike(
    texts: Sequence[bytes], session: Ints, counts: Sequence[int]
) -> tuple[tuple[str, ...], Ints]:
    """The names of all sessions in order, and each number in its block's own list as one in theirs."""
    told = {text: json.loads(text) for text in set(texts)}
    sessions = tuple(sorted({name for names in told.values() for name in names}))
    places = {text: [sessions.index(name) for name in names] for text, names in told.items()}
    begins = np.cumsum([0, *(len(places[text]) for text in texts[:-1])])
    table = np.array([place for text in texts for place in places[text]], np.int64)
    return sessions, table[session + np.repeat(begins, counts)]


def pack_values(values: Values) -> bytes:
    """The values that are there, and one bit a row that says where, unless they are everywhere."""
    is_full = bool(values.is_there.all())
    bits = b"" if is_full else np.packbits(values.is_there).tobytes()
    kept = np.ascontiguousarray(values.value[values.is_there], "<f8")
    return zstd.compress(bytes([is_full]) + bits + _shuffled(kept), LEVEL)


def _unpack_values(payloads: Sequence[bytes | None], num_rows: Sequence[int]) -> Values:
    """What ``pack_values`` packed for blocks of so many rows."""
    raws = [
        _nothing(rows) if payload is None else zstd.decompress(payload)
        for payload, rows in zip(payloads, num_rows, strict=True)
    ]
    if all(raw[0] for raw in raws):
        every = _unshuffled(raws, num_rows, [1] * len(raws), "<f8")
        return Values(every, np.ones(len(every), bool))
    there = [_places(raw, rows) for raw, rows in zip(raws, num_rows, strict=True)]
    counts = [int(one.sum()) for one in there]
    begins = [1 if raw[0] else 1 + _num_bytes(rows) for raw, rows in zip(raws, num_rows, strict=True)]
    is_there = np.concatenate(there)
    value = np.zeros(len(is_there))
    value[is_there] = _unshuffled(raws, counts, begins, "<f8")
    return Values(value, is_there)


def _places(raw: bytes, num_rows: int) -> Bools:
    """Which rows of a block have a value."""
    if raw[0]:
        return np.ones(num_rows, bool)
    return np.unpackbits(np.frombuffer(raw, np.uint8, _num_bytes(num_rows), 1), count=num_rows).astype(bool)


def _nothing(num_rows: int) -> bytes:
    """Values of which none is there."""
    return bytes(1 + _num_bytes(num_rows))


def _num_bytes(num_rows: int) -> int:
    return (num_rows + 7) // 8


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


def _run_begins(rows: Rows) -> NDArray[np.intp]:
    """Where a row comes from another batch than the row before it."""
    is_other = (rows.session[1:] != rows.session[:-1]) | (rows.seq[1:] != rows.seq[:-1])
    return np.flatnonzero(np.concatenate([[True], is_other]))


def _pack_ints(numbers: NDArray[Any]) -> bytes:
    """Differences of differences: zeros, where steps are equally far apart. 64-bit sums wrap, both ways."""
    changes = np.diff(np.asarray(numbers, "<i8"), prepend=np.int64(0))
    return _shuffled(np.diff(changes, prepend=np.int64(0)))


def _unpack_ints(raws: Sequence[bytes], counts: Sequence[int], begins: Sequence[int]) -> Ints:
    """What ``_pack_ints`` packed: of each raw so many numbers, from its own place on."""
    return _summed(_summed(_unshuffled(raws, counts, begins, "<i8"), counts), counts)


def _summed(changes: Ints, counts: Sequence[int]) -> Ints:
    """Running sums that begin anew after each of ``counts`` (none of them 0), written over the changes."""
    begins = np.cumsum([0, *counts[:-1]])
    changes[begins[1:]] -= np.add.reduceat(changes, begins)[:-1]
    return np.add.accumulate(changes, out=changes)


def _shuffled(numbers: NDArray[Any]) -> bytes:
    """Eight-byte numbers, first bytes first."""
    return np.ascontiguousarray(numbers).view(np.uint8).reshape(len(numbers), 8).T.tobytes()


def _unshuffled(raws: Sequence[bytes], counts: Sequence[int], begins: Sequence[int], kind: str) -> Any:
    """Eight-byte numbers, their bytes in order again: of each raw so many, from its own place on."""
    places = list(zip(raws, counts, begins, strict=True))
    numbers = np.empty((sum(counts), 8), np.uint8)
    for n in range(8):
        some = [raw[begin + n * count : begin + (n + 1) * count] for raw, count, begin in places]
        numbers[:, n] = np.frombuffer(b"".join(some), np.uint8)
    return numbers.view(kind).ravel()
