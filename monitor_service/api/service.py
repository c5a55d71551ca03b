"""What keeps the service itself in sight: is it alive, and its metrics."""

from typing import Annotated

from fastapi import APIRouter, Header, Response

from monitor_service.api.dependencies import MonitorDep
from monitor_service.api.permissions import needs_all_projects
from monitor_service.errors import StoreUnavailable
from monitor_service.tokens import Scope

router = APIRouter(tags=["service"])


@router.get("/healthz")
def healthz(monitor: MonitorDep) -> dict[str, str]:
    """Whether batches can be stored; 503 when the writer has ended."""
    if not monitor.store.is_alive:
        raise StoreUnavailable("the writer has ended")
    return {"status": "ok"}


@router.get("/metrics", response_class=Response, dependencies=[needs_all_projects(Scope.READ)])
async def metrics(monitor: MonitorDep, accept: Annotated[str, Header()] = "") -> Response:
    """All series in Prometheus' text format, or in OpenMetrics, with exemplars, for who accepts that."""
    text, media_type = await monitor.scraper.share(accept)
    return Response(text, media_type=media_type)
