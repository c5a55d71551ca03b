"""Series along time instead of steps, and several runs on one grid of steps."""

import math
from dataclasses import dataclass

import numpy as np

from monitor_service.blocks import Headers
from monitor_service.rows import Bools, Floats, Ints, Points
from monitor_service.series import columns_of, pooled


def by_time(points: Points, from_time: float | None, to_time: float | None) -> Points:
    """Points from one Unix time to another, both included, in the order of time."""
    kept = np.ones(len(points.time), bool)
    if from_time is not None:
        kept &= points.time >= from_time
    if to_time is not None:
        kept &= points.time <= to_time
    order = np.flatnonzero(kept)[np.argsort(points.time[kept], kind="stable")]
    return Points(points.attempt[order], points.step[order], points.time[order], points.value[order])


@dataclass(frozen=True)
class Cells:
    """Values gathered in the cells of a grid; ``min`` and ``max`` are NaN where no value is finite."""

    index: Ints
    min: Floats
    max: Floats
    last: Floats
    count: Ints
    nonfinite: Ints


def gather_cells(index: Ints, values: Floats) -> Cells:
    """Gather values by the cell that each is in; ``index`` never falls, empty cells are left out."""
    if not len(index):
        nothing, empty = np.empty(0, np.int64), np.empty(0)
        return Cells(nothing, empty, empty, empty, nothing, nothing)
    begins = np.flatnonzero(np.diff(index, prepend=index[0] - 1))
    count = np.diff(begins, append=len(index))
    is_finite: Bools = np.isfinite(values)
    finite = np.add.reduceat(is_finite.astype(np.int64), begins)
    low = np.minimum.reduceat(np.where(is_finite, values, np.inf), begins)
    high = np.maximum.reduceat(np.where(is_finite, values, -np.inf), begins)
    return Cells(
        index=index[begins],
        min=np.where(finite > 0, low, np.nan),
        max=np.where(finite > 0, high, np.nan),
        last=values[begins + count - 1],
        count=count,
        nonfinite=count - finite,
    )


@dataclass(frozen=True)
class TimeGrid:
    """Cells of equal width in Unix seconds, from ``first`` on."""

    first: float
    width: float

    @classmethod
    def over(cls, points: Points, buckets: int) -> "TimeGrid":
        """At most ``buckets`` cells over points in the order of time, those of finite times."""
        finite = points.time[np.isfinite(points.time)]
        if not len(finite):
            return cls(0.0, 1.0)
        first, last = float(finite[0]), float(finite[-1])
        width = (last / buckets) - (first / buckets)  # apart: their difference may be too large for a double
        return cls(first, max(math.nextafter(width, math.inf), 1e-9))

    def gather(self, points: Points, buckets: int) -> Cells:
        kept = np.isfinite(points.time)
        with np.errstate(over="ignore", invalid="ignore"):
            place = np.nan_to_num((points.time[kept] - self.first) / self.width)
        index = np.clip(place, 0, buckets - 1).astype(np.int64)
        return gather_cells(index, points.value[kept])


@dataclass(frozen=True)
class StepGrid:
    """Cells of ``width`` steps, ``cells`` of them, from step ``first`` on."""

    first: int
    width: int
    cells: int

    @classmethod
    def over(cls, first: int, last: int, buckets: int) -> "StepGrid":
        """At most ``buckets`` cells that hold steps ``first`` to ``last``."""
        width = -(-(last - first + 1) // buckets)
        return cls(first, width, -(-(last - first + 1) // width))

    def gather(self, headers: Headers, points: Points) -> Cells:
        """Gather blocks and points; a block counts for the cell of its first step, wherever it ends."""
        index, pools = pooled(headers, points, self.first, self.width)
        return Cells(index, *columns_of(pools))
