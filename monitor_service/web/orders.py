"""Ordering a command on a page: what it will cost is said once, and confirmed once."""

import asyncio
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from monitor_service.api.control import accept_suggestion, place_order
from monitor_service.api.dependencies import ConnectionDep, Monitor, MonitorDep
from monitor_service.api.ingest import RunName
from monitor_service.api.permissions import PrincipalDep, needs
from monitor_service.concerns import Acceptance
from monitor_service.errors import Conflict, wrong_query
from monitor_service.tables import LARGEST_INTEGER
from monitor_service.tokens import Scope
from monitor_service.web.forms import page_with_form, read_form
from monitor_service.web.proposals import Proposal
from shared.commands import CommandKind, CommandRequest

REASON_LENGTH = 500
DEFAULT_NAME = "operator"

router = APIRouter(
    include_in_schema=False,
    default_response_class=HTMLResponse,
    dependencies=[needs(Scope.CONTROL), needs(Scope.READ)],
)


@router.get("/runs/{run}/order")
def ask(
    request: Request,
    run: RunName,
    connection: ConnectionDep,
    kind: CommandKind = CommandKind.ROLL_BACK,
    to_step: Annotated[int | None, Query(ge=0, le=LARGEST_INTEGER)] = None,
    suggestion: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """What the command would do and cost, and the button that orders it."""
    proposal = Proposal.read(connection, run, kind, to_step, suggestion)
    return page_with_form(request, "order.html", {"proposal": proposal, "reason": "", "error": ""})


@router.post("/runs/{run}/order")
async def order(request: Request, run: RunName, monitor: MonitorDep, principal: PrincipalDep) -> Response:
    """Order it, and lead back to the run, where its life can be followed."""
    fields = await read_form(request)
    kind, to_step = _kind(fields.get("kind", "")), _step(fields.get("to_step", ""))
    if to_step is not None and kind is not CommandKind.ROLL_BACK:
        raise wrong_query("to_step", str(to_step), "leave it out: it goes with roll_back only")
    reason, suggestion = fields.get("reason", "").strip()[:REASON_LENGTH], fields.get("suggestion", "")[:64]
    proposal = await asyncio.to_thread(_read, monitor, run, kind, to_step, suggestion)
    error, status = proposal.obstacle or "", 409
    if not error and not reason and not suggestion:
        error, status = "Say why: whoever looks later will want to know.", 422
    if not error:
        name = principal.signature(fields.get("issued_by", "").strip()[:100] or DEFAULT_NAME)
        wish = CommandRequest(kind=kind, reason=reason or suggestion, to_step=to_step, issued_by=name)
        try:
            if suggestion:
                accepted = Acceptance(suggestion=suggestion, issued_by=name)
                placed = await asyncio.to_thread(accept_suggestion, monitor, run, accepted)
            else:
                placed = await asyncio.to_thread(place_order, monitor, run, wish)
        except Conflict as conflict:  # somebody was faster
            error = str(conflict)
        else:
            return RedirectResponse(f"/runs/{run}?{urlencode({'ordered': placed.view.id})}#commands", 303)
    return page_with_form(
        request, "order.html", {"proposal": proposal, "reason": reason, "error": error}, status
    )


def _read(monitor: Monitor, run: str, kind: CommandKind, to_step: int | None, suggestion: str) -> Proposal:
    with monitor.store.reading() as connection:
        return Proposal.read(connection, run, kind, to_step, suggestion)


def _kind(text: str) -> CommandKind:
    try:
        return CommandKind(text)
    except ValueError as error:
        raise wrong_query("kind", text, f"say {', '.join(CommandKind)}") from error


def _step(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and int(text) <= LARGEST_INTEGER):
        raise wrong_query("to_step", text, "say a step, as a whole number")
    return int(text)
