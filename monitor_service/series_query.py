"""What is asked about series: raw or in buckets, along steps or time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import Field
from sqlalchemy import Connection

from monitor_service import points, queries
from monitor_service.axes import Cells, TimeGrid, by_time
from monitor_service.errors import wrong_query
from monitor_service.rows import Points
from monitor_service.views import BucketSeries, RawColumns, RawSeries
from shared.base import Message


class Axis(StrEnum):
    """What a series runs along."""

    STEP = "step"
    TIME = "time"


@dataclass(frozen=True)
class SeriesQuestion:
    """Which points of which series.

    Args:
        attempt: ``effective`` (without abandoned steps), ``all``, or one attempt's number.
        from_step, to_step, from_time, to_time: both ends included; times are Unix seconds.
        buckets: gather in at most so many; ``None``: every point.
    """

    run: str
    names: Sequence[str]
    attempt: str = points.EFFECTIVE
    axis: Axis = Axis.STEP
    from_step: int | None = None
    to_step: int | None = None
    from_time: float | None = None
    to_time: float | None = None
    buckets: int | None = None


class TimeBucketColumns(Message):
    """Points of one series, gathered by ranges of Unix time; ranges without points are left out.

    ``min`` and ``max`` are over finite values, ``null`` where there is none; ``last`` may be anything.
    """

    time_from: list[float]
    time_to: list[float]
    min: list[float | None]
    max: list[float | None]
    last: list[float]
    count: list[int]
    nonfinite: list[int]


class TimeBucketSeries(Message):
    """Some series along time, thinned out for drawing."""

    run: str
    attempt: str
    series: dict[str, TimeBucketColumns] = Field(description="By name.")


AnySeries = RawSeries | BucketSeries | TimeBucketSeries


def ask(connection: Connection, question: SeriesQuestion) -> AnySeries:
    """The series that answer a question.

    Raises:
        NotFound: no such run, or it never sent such a series.
        InvalidMessage: parts of the question do not go together.
    """
    if question.buckets is not None and question.axis is Axis.STEP:
        _refuse_contradictions(question)
        return queries.bucket_series(
            connection,
            question.run,
            question.names,
            buckets=question.buckets,
            attempt=question.attempt,
            from_step=question.from_step,
            to_step=question.to_step,
        )
    found = read_points(connection, question)
    if question.buckets is None:
        raw = {name: RawColumns.of(some) for name, some in found.items()}
        return RawSeries.model_construct(run=question.run, attempt=question.attempt, series=raw)
    timed = {name: _time_buckets(some, question.buckets) for name, some in found.items()}
    return TimeBucketSeries.model_construct(run=question.run, attempt=question.attempt, series=timed)


def read_points(connection: Connection, question: SeriesQuestion) -> dict[str, Points]:
    """The points themselves, in the order of the axis. Raises as ``ask`` does."""
    _refuse_contradictions(question)
    run = queries.run_row(connection, question.run)
    ends = question.from_step, question.to_step
    found = points.read(connection, run, question.names, question.attempt, *ends)
    if question.axis is Axis.STEP:
        return found
    return {name: by_time(some, question.from_time, question.to_time) for name, some in found.items()}


def _refuse_contradictions(question: SeriesQuestion) -> None:
    if question.axis is Axis.STEP and (question.from_time is not None or question.to_time is not None):
        raise wrong_query("axis", question.axis, "from_time and to_time go with axis=time")
    for ends in ("step", "time"):
        first, last = getattr(question, f"from_{ends}"), getattr(question, f"to_{ends}")
        if first is not None and last is not None and first > last:
            raise wrong_query(f"from_{ends}", str(first), f"it may be to_{ends} ({last}) at most")
    if question.buckets is not None and question.attempt == points.ALL:
        raise wrong_query("attempt", "all", "buckets go with 'effective' or the number of an attempt")


def _time_buckets(some: Points, buckets: int) -> TimeBucketColumns:
    grid = TimeGrid.over(some, buckets)
    cells = grid.gather(some, buckets)
    begins = grid.first + cells.index * grid.width
    return TimeBucketColumns.model_construct(
        time_from=begins.tolist(), time_to=(begins + grid.width).tolist(), **cell_columns(cells)
    )


def cell_columns(cells: Cells) -> dict[str, Any]:
    """The arrays of cells as lists, ``None`` for bounds where no value is finite."""
    return {
        "min": [None if math.isnan(low) else low for low in cells.min.tolist()],
        "max": [None if math.isnan(high) else high for high in cells.max.tolist()],
        "last": cells.last.tolist(),
        "count": cells.count.tolist(),
        "nonfinite": cells.nonfinite.tolist(),
    }
