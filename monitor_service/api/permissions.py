"""What a principal may do: each router names the scope it needs, and a foreign run is as if not there."""

import asyncio
from collections.abc import Collection
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.types import Scope as HttpScope

from monitor_service.access import Principal, refuse_foreign
from monitor_service.api.dependencies import Monitor
from monitor_service.errors import Forbidden, NotAuthenticated
from monitor_service.tokens import Scope


def known_principal(scope: HttpScope) -> Principal:
    """Who asks. Raises NotAuthenticated: nobody that is known."""
    principal: Principal | None = scope["state"]["principal"]
    if principal is None:
        raise NotAuthenticated("no token was sent; send Authorization: Bearer TOKEN")
    return principal


async def require_principal(request: Request) -> Principal:
    return known_principal(request.scope)


PrincipalDep = Annotated[Principal, Depends(require_principal)]


def needs(*scopes: Scope) -> Any:
    """Let a request pass whose principal has one of ``scopes`` and sees the run in the path, if any."""

    async def check(request: Request, principal: PrincipalDep) -> None:
        await require(request.app.state.monitor, principal, scopes, request.path_params.get("run"))

    return Depends(check)


async def require(monitor: Monitor, principal: Principal, scopes: Collection[Scope], run: str | None) -> None:
    """Raises Forbidden or NotFound: this principal may not do that, or not with that run."""
    if not any(map(principal.may, scopes)):
        has = ", ".join(sorted(principal.scopes)) or "none"
        raise Forbidden(f"token {principal.name!r} has scope {has}; this needs {' or '.join(scopes)}")
    if run is not None and principal.project is not None:
        await asyncio.to_thread(_look, monitor, principal, run)


def needs_all_projects(scope: Scope) -> Any:
    """The same for what tells of every run at once."""

    async def check(principal: PrincipalDep) -> None:
        if not principal.may(scope) or principal.project is not None:
            raise Forbidden(f"token {principal.name!r} will not do; this needs {scope} for all projects")

    return Depends(check)


def _look(monitor: Monitor, principal: Principal, run: str) -> None:
    with monitor.store.reading() as connection:
        refuse_foreign(connection, principal, run)
