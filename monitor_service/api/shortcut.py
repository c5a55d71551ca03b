"""The short way of what is asked most: past router and dependencies, which cost more than the answer.

It leads to the same checks and the same functions as the routes, which stay to describe the API, and for
whatever is not plainly one of these: such a request goes on, and the router says what is wrong with it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from monitor_service import tokens
from monitor_service.api import ingest, query
from monitor_service.api.dependencies import Monitor
from monitor_service.api.paths import API, run_of_exchange, run_of_health
from monitor_service.api.permissions import known_principal, require
from monitor_service.api.problems import answer_or_raise


@dataclass(frozen=True)
class _Way:
    """One route that has a short way."""

    path: str
    """As the router names it."""
    run_of: Callable[[Scope], str | None]
    needs: tokens.Scope
    answer: Callable[[str, Request, Monitor], Awaitable[Response]]


_WAYS = (
    _Way(f"{API}/runs/{{run}}/exchange", run_of_exchange, tokens.Scope.INGEST, ingest.exchange),
    _Way(f"{API}/runs/{{run}}/health", run_of_health, tokens.Scope.READ, query.health),
)


class Shortcut:
    """The innermost layer of the app: behind the guard, before the routes."""

    def __init__(self, app: ASGIApp, monitor: Monitor) -> None:
        self._app, self._monitor = app, monitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for way in _WAYS if scope["type"] == "http" else ():
            run = way.run_of(scope)
            if run is not None:
                scope["route"] = way  # as the router does: the guard asks it for its path
                await self._answer(way, run, scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _answer(self, way: _Way, run: str, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            await require(self._monitor, known_principal(scope), [way.needs], run)
            response = await way.answer(run, request, self._monitor)
        except Exception as error:  # what a route would answer is answered, and the rest goes on
            response = await answer_or_raise(request, error)
        await response(scope, receive, send)
