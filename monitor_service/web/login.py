"""Signing in and out: a token is exchanged for a cookie that no script reads and no other site sends."""

import asyncio
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from sqlalchemy import Connection

from monitor_service import tokens
from monitor_service.access import Principal
from monitor_service.api.dependencies import Monitor, MonitorDep
from monitor_service.api.guard import SESSION_COOKIE, address_of, principal_of
from monitor_service.errors import NotAuthenticated
from monitor_service.tokens import Scope
from monitor_service.web.forms import FORM_COOKIE, page_with_form, read_form, set_cookie

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


@router.get("/login")
def login_page(request: Request, next: Annotated[str, Query(max_length=500)] = "/") -> Response:
    """The form for a token."""
    return _login_page(request, next)


@router.post("/login")
async def sign_in(request: Request, monitor: MonitorDep) -> Response:
    """Exchange a token for a session's cookie."""
    fields = await read_form(request)
    goal = _local(fields.get("next", "/"))
    try:
        principal = await monitor.door.admit(fields.get("token", "").strip(), address_of(request.scope))
    except NotAuthenticated as error:
        return _login_page(request, goal, str(error), 401)
    if principal.is_session:  # else a session could follow another for ever, past the token's end
        return _login_page(request, goal, "That is a session's secret; send the token itself.", 403)
    if not principal.may(Scope.READ):
        return _login_page(request, goal, f"Token {principal.name!r} may not read.", 403)
    answer = RedirectResponse(goal, 303)
    if principal.token is not None:
        secret = await asyncio.to_thread(_open_session, monitor, principal)
        lasts_s = monitor.settings.session_hours * 3600
        set_cookie(answer, request, SESSION_COOKIE, secret, lasts_s)
        # signing out is a form: it must work as long as the session does, after a restart of the browser too
        set_cookie(answer, request, FORM_COOKIE, request.cookies[FORM_COOKIE], lasts_s)
    return answer


@router.post("/logout")
async def sign_out(request: Request, monitor: MonitorDep) -> Response:
    """End the session on the server, and forget its cookie."""
    await read_form(request)
    principal = principal_of(request)
    if principal is not None and principal.is_session and principal.token is not None:
        id_, now = principal.token, monitor.clock()
        await asyncio.to_thread(monitor.store.write, lambda connection: tokens.revoke(connection, id_, now))
        monitor.door.forget()
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(SESSION_COOKIE, path="/", httponly=True, samesite="strict")
    return answer


def _open_session(monitor: Monitor, principal: Principal) -> str:
    now = monitor.clock()

    def write(connection: Connection) -> str:
        tokens.forget_ended_sessions(connection, now)
        return tokens.create(
            connection,
            principal.name,
            principal.scopes - {Scope.INGEST},
            now,
            project=principal.project,
            expires_at=now + timedelta(hours=monitor.settings.session_hours),
            parent=principal.token,
        )[1]

    secret = monitor.store.write(write)
    monitor.door.forget()
    return secret


def _login_page(request: Request, goal: str, error: str = "", status: int = 200) -> Response:
    return page_with_form(request, "login.html", {"goal": _local(goal), "error": error}, status)


def _local(goal: str) -> str:
    """A path of ours; anything that a browser could take for another site leads to the first page."""
    is_path = goal.startswith("/") and not goal.startswith("//")
    return goal if is_path and goal.isprintable() and "\\" not in goal else "/"
