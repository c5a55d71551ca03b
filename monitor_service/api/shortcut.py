"""The short way of a batch: past the router and its dependencies, which cost more than storing it.

It leads to the same checks and the same function as the route, which stays for the description of the API and
for whatever is not plainly an exchange: such a request goes on, and the router says what is wrong with it.
"""

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from monitor_service import tokens
from monitor_service.api import ingest
from monitor_service.api.dependencies import Monitor
from monitor_service.api.paths import run_of_exchange
from monitor_service.api.permissions import require, require_principal
from monitor_service.api.problems import answer_or_raise


class Shortcut:
    """The innermost layer of the app: behind the guard, before the routes."""

    def __init__(self, app: ASGIApp, monitor: Monitor) -> None:
        self._app, self._monitor = app, monitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        run = run_of_exchange(scope) if scope["type"] == "http" else None
        if run is None:
            await self._app(scope, receive, send)
            return
        request = Request({**scope, "path_params": {"run": run}}, receive)
        try:
            await require(request, await require_principal(request), [tokens.Scope.INGEST])
            response = await ingest.exchange(run, request, self._monitor)
        except Exception as error:  # what a route would answer is answered, and the rest goes on
            response = await answer_or_raise(request, error)
        await response(scope, receive, send)
