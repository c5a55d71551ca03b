"""Series as JSON, as CSV and as bytes: the same columns in each, written from arrays.

Bytes: the length of a header (uint32, little-endian), the header (JSON: ``run``, ``attempt``, and for each
series its ``name``, ``rows`` and ``columns`` as ``[name, type]``), then the columns one after another,
``<i8`` or ``<f8``. So every double arrives as it left, NaN payload included; a bound without a value is NaN.
"""

import csv
import io
import json
import math
import struct
from collections.abc import Mapping
from itertools import repeat
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

BINARY = "application/vnd.trainhealth.series"
CSV = "text/csv; charset=utf-8"
INTEGERS = frozenset({"attempt", "step", "step_from", "step_to", "count", "nonfinite"})
BOUNDS = frozenset({"min", "max"})
"""NaN in them says that no value is finite: ``null`` in JSON, nothing in CSV."""

_LENGTH = struct.Struct("<I")

Table = Mapping[str, NDArray[Any]]
"""Columns of one series by name, all of one length."""


def as_csv(series: Mapping[str, Table]) -> str:
    """A line for each point, with the series' name in front; NaN and infinities as the words of the wire."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for number, (name, table) in enumerate(series.items()):
        if number == 0:
            writer.writerow(["series", *table])
        columns = [_listed(column, some) for column, some in table.items()]
        writer.writerows(zip(repeat(name), *columns, strict=False))
    return text.getvalue()


def as_json(run: str, attempt: str, series: Mapping[str, Table]) -> bytes:
    """The text of ``RawSeries`` and its like: lists of their numbers would cost more than all the rest."""
    told = {
        name: {column: _sayable(column, some) for column, some in table.items()}
        for name, table in series.items()
    }
    return orjson.dumps({"run": run, "attempt": attempt, "series": told}, option=orjson.OPT_SERIALIZE_NUMPY)


def _sayable(name: str, column: NDArray[Any]) -> NDArray[Any] | list[Any]:
    """The array, unless it holds what JSON has no number for."""
    is_said = column.dtype.kind == "i" or name in BOUNDS or bool(np.isfinite(column).all())
    return np.ascontiguousarray(column) if is_said else _listed(name, column)


def _listed(name: str, column: NDArray[Any]) -> list[Any]:
    """The numbers, with the words of the wire for those that are not finite, and ``None`` for no bound."""
    said: list[Any] = column.tolist()
    for place in np.flatnonzero(~np.isfinite(column)).tolist():
        said[place] = None if name in BOUNDS else _word(said[place])
    return said


def _word(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def as_bytes(run: str, attempt: str, series: Mapping[str, Table]) -> bytes:
    """Header and arrays."""
    head, arrays = [], []
    for name, table in series.items():
        columns = [(column, "<i8" if column in INTEGERS else "<f8") for column in table]
        rows = len(next(iter(table.values()), ()))
        head.append({"name": name, "rows": rows, "columns": columns})
        arrays += [np.ascontiguousarray(table[column], kind).data for column, kind in columns]
    header = json.dumps({"run": run, "attempt": attempt, "series": head}).encode()
    return b"".join([_LENGTH.pack(len(header)), header, *arrays])


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
