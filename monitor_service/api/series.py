"""Series and comparisons, as JSON, CSV or bytes."""

from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Query, Response

from monitor_service import series_forms
from monitor_service.access import refuse_foreign
from monitor_service.api.answers import answer
from monitor_service.api.dependencies import ConnectionDep, MonitorDep
from monitor_service.api.ingest import RunName
from monitor_service.api.paths import API
from monitor_service.api.permissions import PrincipalDep, needs
from monitor_service.comparing import Comparison, compare
from monitor_service.errors import wrong_query
from monitor_service.points import EFFECTIVE
from monitor_service.series_query import Axis, SeriesQuestion, ask
from monitor_service.tables import LARGEST_INTEGER
from monitor_service.tokens import Scope
from monitor_service.views import BucketSeries, RawSeries, TimeBucketSeries
from shared.base import Name

router = APIRouter(prefix=API, tags=["query"], dependencies=[needs(Scope.READ)])

Whole = Annotated[int | None, Query(ge=0, le=LARGEST_INTEGER)]
Seconds = Annotated[float | None, Query(allow_inf_nan=False, description="Unix seconds; with axis=time")]
SeriesNames = Annotated[list[str], Query(min_length=1, max_length=50, description="May be given again.")]


class Form(StrEnum):
    """How series travel."""

    JSON = "json"
    CSV = "csv"
    BINARY = "binary"


@router.get(
    "/runs/{run}/series",
    response_model=RawSeries | BucketSeries | TimeBucketSeries,
    responses={
        200: {
            "content": {
                "text/csv": {"example": "series,attempt,step,time,value\nloss,1,40,1700000000.0,2.31\n"},
                series_forms.BINARY: {"schema": {"type": "string", "format": "binary"}},
            }
        }
    },
)
def series(
    run: RunName,
    monitor: MonitorDep,
    name: SeriesNames,
    attempt: Annotated[str, Query(description="effective, all, or the number of one")] = EFFECTIVE,
    axis: Axis = Axis.STEP,
    from_step: Whole = None,
    to_step: Whole = None,
    from_time: Seconds = None,
    to_time: Seconds = None,
    buckets: Annotated[int | None, Query(ge=1, le=10_000)] = None,
    form: Annotated[Form, Query(alias="format")] = Form.JSON,
) -> Response:
    """Points of some series, every one or gathered in ``buckets`` with min, max, last and counts."""
    ends = {"from_step": from_step, "to_step": to_step, "from_time": from_time, "to_time": to_time}
    question = SeriesQuestion(run, name, attempt, axis, buckets=buckets, **ends)  # type: ignore[arg-type]
    with monitor.store.reading() as connection:  # not by a dependency: one thread's work, and not three
        told = ask(connection, question)
    if form is Form.CSV:
        return Response(series_forms.as_csv(told), media_type=series_forms.CSV)
    if form is Form.BINARY:
        return Response(series_forms.as_bytes(run, attempt, told), media_type=series_forms.BINARY)
    return Response(series_forms.as_json(run, attempt, told), media_type="application/json")


@router.get("/compare", response_model=Comparison)
def compared(
    connection: ConnectionDep,
    principal: PrincipalDep,
    run: Annotated[list[Name], Query(min_length=2, max_length=20, description="Two or more.")],
    name: SeriesNames,
    buckets: Annotated[int, Query(ge=1, le=2_000)] = 500,
) -> Response:
    """Runs side by side: summaries, settings in which they differ, and series on one grid of steps."""
    if len(set(run)) < len(run):
        raise wrong_query("run", ", ".join(run), "name each run once")
    for one in run:
        refuse_foreign(connection, principal, one)
    return answer(compare(connection, run, name, buckets))
