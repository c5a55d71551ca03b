"""What is asked about series: raw or in buckets, along steps or time."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection

from monitor_service import points, queries
from monitor_service.axes import TimeGrid, by_time
from monitor_service.errors import wrong_query
from monitor_service.rows import Points
from monitor_service.series_forms import Table


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


def ask(connection: Connection, question: SeriesQuestion) -> dict[str, Table]:
    """The series that answer a question, column by column as ``views`` describes them.

    Raises:
        NotFound: no such run, or it never sent such a series.
        InvalidMessage: parts of the question do not go together.
    """
    _refuse_contradictions(question)
    run, buckets = queries.run_row(connection, question.run), question.buckets
    ends = question.attempt, question.from_step, question.to_step
    if buckets is not None and question.axis is Axis.STEP:
        gathered = points.gather(connection, run, question.names, buckets, *ends)
        return {name: vars(some) for name, some in gathered.items()}
    found = points.read(connection, run, question.names, *ends)
    if question.axis is Axis.TIME:
        span = question.from_time, question.to_time
        found = {name: by_time(some, *span) for name, some in found.items()}
    if buckets is not None:
        return {name: _time_buckets(some, buckets) for name, some in found.items()}
    return {name: vars(some) for name, some in found.items()}


def _refuse_contradictions(question: SeriesQuestion) -> None:
    if question.axis is Axis.STEP and (question.from_time is not None or question.to_time is not None):
        raise wrong_query("axis", question.axis, "from_time and to_time go with axis=time")
    for ends in ("step", "time"):
        first, last = getattr(question, f"from_{ends}"), getattr(question, f"to_{ends}")
        if first is not None and last is not None and first > last:
            raise wrong_query(f"from_{ends}", str(first), f"it may be to_{ends} ({last}) at most")
    if question.buckets is not None and question.attempt == points.ALL:
        raise wrong_query("attempt", "all", "buckets go with 'effective' or the number of an attempt")


def _time_buckets(some: Points, buckets: int) -> Table:
    grid = TimeGrid.over(some, buckets)
    cells = grid.gather(some, buckets)
    begins = grid.first + cells.index * grid.width
    columns = {name: column for name, column in vars(cells).items() if name != "index"}
    return {"time_from": begins, "time_to": begins + grid.width, **columns}
