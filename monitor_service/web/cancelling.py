"""Taking a command back on a page: what that means for it now is said once, and confirmed once."""

import asyncio
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from monitor_service import queries
from monitor_service.api.control import take_back
from monitor_service.api.dependencies import ConnectionDep, Monitor, MonitorDep
from monitor_service.api.ingest import RunName
from monitor_service.api.permissions import PrincipalDep, needs
from monitor_service.commands import CANCELLABLE, Cancellation
from monitor_service.errors import Conflict
from monitor_service.tokens import Scope
from monitor_service.views import CommandView
from monitor_service.web import words
from monitor_service.web.forms import page_with_form, read_form
from monitor_service.web.orders import DEFAULT_NAME, REASON_LENGTH

router = APIRouter(
    include_in_schema=False,
    default_response_class=HTMLResponse,
    dependencies=[needs(Scope.CONTROL), needs(Scope.READ)],
)

CommandId = Annotated[str, Path(max_length=64)]


@router.get("/runs/{run}/commands/{command}/cancel")
def ask(request: Request, run: RunName, command: CommandId, connection: ConnectionDep) -> Response:
    """What taking it back would do, and the button that does it."""
    return _page(request, queries.command(connection, run, command))


@router.post("/runs/{run}/commands/{command}/cancel")
async def cancel(
    request: Request, run: RunName, command: CommandId, monitor: MonitorDep, principal: PrincipalDep
) -> Response:
    """Take it back, and lead to the run, where the trainer's word can be seen."""
    fields = await read_form(request)
    reason = fields.get("reason", "").strip()[:REASON_LENGTH]
    view = await asyncio.to_thread(_read, monitor, run, command)
    if not reason:
        return _page(request, view, "Say why: whoever looks later will want to know.", 422)
    name = principal.signature(fields.get("cancelled_by", "").strip()[:100] or DEFAULT_NAME)
    cancellation = Cancellation(reason=reason, cancelled_by=name)
    try:
        await asyncio.to_thread(take_back, monitor, run, command, cancellation)
    except Conflict:  # the trainer was faster
        view = await asyncio.to_thread(_read, monitor, run, command)
        return _page(request, view, status=409)
    return RedirectResponse(f"/runs/{run}?{urlencode({'cancelled': command})}#commands", 303)


def _read(monitor: Monitor, run: str, command: str) -> CommandView:
    with monitor.store.reading() as connection:
        return queries.command(connection, run, command)


def _page(request: Request, view: CommandView, error: str = "", status: int = 200) -> Response:
    obstacle = "" if view.state in CANCELLABLE else f"It is {view.state}, and can be taken back no more."
    context = {
        "command": view,
        "label": words.COMMAND[view.kind],
        "obstacle": obstacle,
        "error": error,
    }
    return page_with_form(request, "cancel.html", context, status)
