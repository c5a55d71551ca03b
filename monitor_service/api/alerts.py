"""Alerts: Alertmanager sends them here, and whoever may read sees what became of them."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from monitor_service import alerts as kept
from monitor_service.api.answers import answer
from monitor_service.api.body import read_message
from monitor_service.api.dependencies import ConnectionDep, MonitorDep
from monitor_service.api.openapi import body_of
from monitor_service.api.paths import API
from monitor_service.api.permissions import PrincipalDep, needs
from monitor_service.errors import InvalidMessage, Violation
from monitor_service.tables import LARGEST_INTEGER
from monitor_service.tokens import Scope
from monitor_service.webhook import EXPECTED, AlertPage, AlertsReceived, Result, Webhook
from shared.base import Name

router = APIRouter(prefix=API, tags=["alerts"])


@router.post(
    "/alerts",
    response_model=AlertsReceived,
    openapi_extra=body_of(Webhook),
    dependencies=[needs(Scope.HOOK, Scope.CONTROL)],
)
async def receive(request: Request, monitor: MonitorDep, principal: PrincipalDep) -> Response:
    """Take Alertmanager's webhook: an alert with ``action="roll_back"`` and ``run`` orders a rollback, once.

    200 says what became of each alert, also where nothing could be done: Alertmanager repeats what is
    answered with 5xx, and a run that is over will not come back.
    """
    try:
        webhook = await read_message(request, Webhook, monitor.settings)
    except InvalidMessage as error:
        what = Violation("body", "something else", f"expected {EXPECTED}")
        raise InvalidMessage([what, *error.violations]) from error
    now = monitor.clock()
    done = await monitor.store.commit(
        lambda connection: kept.receive(connection, webhook, principal, now, monitor.settings)
    )
    for outcome in done.alerts:
        monitor.meters.alert_webhooks.labels(outcome.status, outcome.result).inc()
        if outcome.result is Result.ORDERED and outcome.run is not None:
            monitor.bell.ring(outcome.run)
    return answer(done)


@router.get("/alerts", response_model=AlertPage, dependencies=[needs(Scope.READ)])
def alerts(
    connection: ConnectionDep,
    principal: PrincipalDep,
    run: Name | None = None,
    status: Literal["firing", "resolved"] | None = None,
    before: Annotated[int | None, Query(ge=1, le=LARGEST_INTEGER)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """Alerts that were received, the youngest first, and what became of them."""
    page = kept.alerts(
        connection, project=principal.project, run=run, status=status, before=before, limit=limit
    )
    return answer(page)
