"""Stands before every route: is the host ours, who asks, how often, and what is written down about it.

Whatever is not listed in ``PUBLIC`` needs a principal, so a new route is closed until somebody opens it.
What a principal may do is the routes' business (``permissions.py``).
"""

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from starlette.requests import Request, cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monitor_service.access import Principal
from monitor_service.api.dependencies import Monitor
from monitor_service.api.headers import SECURITY, STRICT_TRANSPORT, completed, fields_of, pairs_of
from monitor_service.api.hosts import Hosts
from monitor_service.api.paths import run_of_exchange
from monitor_service.api.problems import answer_to, refusal, status_of
from monitor_service.api.refusals import SAFE_METHODS, Refusals
from monitor_service.errors import Forbidden, MonitorError, NotAuthenticated, wrong_query
from monitor_service.limits import Buckets

PUBLIC = ("/healthz", "/openapi.json", "/login", "/static/")
MARKS = pairs_of(SECURITY)
MARKS_OVER_TLS = pairs_of({**SECURITY, **STRICT_TRANSPORT})
SESSION_COOKIE = "trainhealth_session"


class Guard:
    """The outermost layer of the app."""

    def __init__(self, app: ASGIApp, monitor: Monitor, refusals: Refusals) -> None:
        settings = monitor.settings
        self._app, self._door = app, monitor.door
        self._hosts = Hosts(settings.host, settings.allowed_hosts)
        self._asked = Buckets(settings.rate_limit_per_s)
        self._sent = Buckets(settings.rate_limit_ingest_per_s)
        self._refusals = refusals
        self._log, self._meters = monitor.access_log, monitor.meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                marks = MARKS_OVER_TLS if scope["scheme"] == "https" else MARKS
                message["headers"] = completed(message.get("headers", ()), marks)
            await send(message)

        try:
            refusal = await self._judge(scope)
            await (refusal or self._app)(scope, receive, send_marked)
        finally:
            seconds = time.perf_counter() - started
            self._meters.note_answer(status, _question(scope), seconds)
            self._log.note(scope, status, seconds)

    async def _judge(self, scope: Scope) -> Response | None:
        """The answer to whoever may not pass; ``None`` lets the request go on, with its principal."""
        fields = fields_of(scope)
        try:
            self._hosts.check(fields.get("host", ""))
            _refuse_other_origins(scope["method"], fields)
            _refuse_nul(scope)
            principal = await self._admit(scope, fields)
            self._limit(scope, principal)
        except NotAuthenticated as error:
            self._refusals.note(scope, status_of(error), error)
            return _to_login(scope, fields) or answer_to(error)
        except MonitorError as error:
            self._refusals.note(scope, status_of(error), error)
            return refusal(Request(scope), error)
        scope.setdefault("state", {})["principal"] = principal
        return None

    async def _admit(self, scope: Scope, fields: Mapping[str, str]) -> Principal | None:
        try:
            return await self._door.admit(secret_of(fields), address_of(scope))
        except NotAuthenticated:
            if is_public(scope["path"]):
                return None
            raise

    def _limit(self, scope: Scope, principal: Principal | None) -> None:
        who = principal.token if principal and principal.token else address_of(scope)
        buckets = self._asked if run_of_exchange(scope) is None else self._sent
        buckets.take(who)


def _question(scope: Scope) -> str | None:
    """The route that answered a question of the API; streams last as long as somebody listens."""
    route = scope.get("route")
    path: str | None = getattr(route, "path", None) if scope["method"] == "GET" else None
    return path if path and path.startswith("/api/") and not path.endswith("/stream") else None


def is_public(path: str) -> bool:
    """Whether anybody may ask for it: nothing about any run is there."""
    return any(path.startswith(one) if one.endswith("/") else path == one for one in PUBLIC)


def secret_of(fields: Mapping[str, str]) -> str | None:
    """The secret that a request shows: in its header, else in the cookie of a session."""
    kind, _, secret = fields.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return secret.strip()
    cookie = fields.get("cookie")
    return None if cookie is None else cookie_parser(cookie).get(SESSION_COOKIE)


def _refuse_other_origins(method: str, fields: Mapping[str, str]) -> None:
    """A page elsewhere must not make a browser change something here."""
    if method in SAFE_METHODS:
        return
    origin = fields.get("origin")
    if origin is not None:
        is_ours = urlsplit(origin).netloc.lower() == fields.get("host", "").lower()
    else:
        is_ours = fields.get("sec-fetch-site", "none") in ("same-origin", "none")
    if not is_ours:
        raise Forbidden(f"the request comes from a page of {(origin or 'another site')[:100]!r}, not of ours")


def _refuse_nul(scope: Scope) -> None:
    """No name or text holds the character NUL, and PostgreSQL fails on it."""
    if "\0" in scope["path"] or b"%00" in scope["query_string"]:
        raise wrong_query("address", "%00", "leave the character NUL out")


def _to_login(scope: Scope, fields: Mapping[str, str]) -> Response | None:
    """Where a person who opens a page is sent to; ``None`` for programs."""
    path = scope["path"]
    is_page = scope["method"] == "GET" and path != "/metrics" and not path.startswith("/api/")
    if not is_page or "text/html" not in fields.get("accept", ""):
        return None
    query = scope["query_string"].decode("latin-1")
    goal = f"{path}?{query}" if query else path
    return RedirectResponse(f"/login?next={quote(goal, safe='/')}", 303)


def address_of(scope: Scope) -> str:
    """Whom limits count where there is no token."""
    client: Any = scope.get("client")
    return str(client[0]) if client else "unknown"


def principal_of(request: Request) -> Principal | None:
    """Who asks; ``None`` on a public page that nobody signed in to."""
    found: Principal | None = getattr(request.state, "principal", None)
    return found
