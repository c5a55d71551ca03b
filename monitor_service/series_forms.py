"""Series as CSV and as bytes; the same columns as the JSON.

Bytes: the length of a header (uint32, little-endian), the header (JSON: ``run``, ``attempt``, and for each
series its ``name``, ``rows`` and ``columns`` as ``[name, type]``), then the columns one after another,
``<i8`` or ``<f8``. So every double arrives as it left, NaN payload included; a bound without a value is NaN.
"""

import csv
import io
import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

BINARY = "application/vnd.trainhealth.series"
CSV = "text/csv; charset=utf-8"
INTEGERS = frozenset({"attempt", "step", "step_from", "step_to", "count", "nonfinite"})

_LENGTH = struct.Struct("<I")

Column = Sequence[int] | Sequence[float | None] | NDArray[Any]
Table = Mapping[str, Column]
"""Columns of one series by name, all of one length."""


def as_csv(series: Mapping[str, Table]) -> str:
    """A line for each point, with the series' name in front; NaN and infinities as the words of the wire."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for number, (name, table) in enumerate(series.items()):
        if number == 0:
            writer.writerow(["series", *table])
        writer.writerows([name, *map(_written, row)] for row in zip(*table.values(), strict=True))
    return text.getvalue()


def _written(value: float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, int) or math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def as_json(run: str, attempt: str, series: Mapping[str, Mapping[str, NDArray[Any]]]) -> bytes:
    """The text of ``RawSeries``, written from arrays: lists of their numbers would cost more than all."""
    told = {name: {key: _sayable(column) for key, column in table.items()} for name, table in series.items()}
    return orjson.dumps({"run": run, "attempt": attempt, "series": told}, option=orjson.OPT_SERIALIZE_NUMPY)


def _sayable(column: NDArray[Any]) -> NDArray[Any] | list[Any]:
    """The numbers, with the words of the wire for those that JSON has none for."""
    is_finite = np.isfinite(column)
    if is_finite.all():
        return np.ascontiguousarray(column)
    said: list[Any] = column.tolist()
    for place in np.flatnonzero(~is_finite).tolist():
        said[place] = _written(said[place])
    return said


def as_bytes(run: str, attempt: str, series: Mapping[str, Table]) -> bytes:
    """Header and arrays."""
    head, arrays = [], []
    for name, table in series.items():
        columns = [(column, "<i8" if column in INTEGERS else "<f8") for column in table]
        rows = len(next(iter(table.values()), ()))
        head.append({"name": name, "rows": rows, "columns": columns})
        arrays += [_array(table[column], kind).tobytes() for column, kind in columns]
    header = json.dumps({"run": run, "attempt": attempt, "series": head}).encode()
    return b"".join([_LENGTH.pack(len(header)), header, *arrays])


def _array(column: Column, kind: str) -> NDArray[Any]:
    if isinstance(column, np.ndarray):
        return column.astype(kind, copy=False)
    return np.array([math.nan if value is None else value for value in column], kind)


def from_bytes(data: bytes) -> dict[str, dict[str, NDArray[Any]]]:
    """The columns of each series by name: what ``as_bytes`` wrote."""
    (length,) = _LENGTH.unpack_from(data)
    header = json.loads(data[_LENGTH.size : _LENGTH.size + length])
    offset = _LENGTH.size + length
    series: dict[str, dict[str, NDArray[Any]]] = {}
    for one in header["series"]:
        series[one["name"]] = {}
        for column, kind in one["columns"]:
            series[one["name"]][column] = np.frombuffer(data, kind, one["rows"], offset)
            offset += 8 * one["rows"]
    return series
