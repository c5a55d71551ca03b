"""What a principal may do: each router names the scope it needs, and a foreign run is as if not there."""

import asyncio
from collections.abc import Collection
from typing import Annotated, Any

from fastapi import Depends, Request

from monitor_service.access import Principal, refuse_foreign
from monitor_service.api.dependencies import Monitor
from monitor_service.api.guard import principal_of
from monitor_service.errors import Forbidden, NotAuthenticated
from monitor_service.tokens import Scope


async def require_principal(request: Request) -> Principal:
    principal = principal_of(request)
    if principal is None:
        raise NotAuthenticated("no token was sent; send Authorization: Bearer TOKEN")
    return principal


PrincipalDep = Annotated[Principal, Depends(require_principal)]


def needs(*scopes: Scope) -> Any:
    """Let a request pass whose principal has one of ``scopes`` and sees the run in the path, if any."""

    async def check(request: Request, principal: PrincipalDep) -> None:
        await require(request, principal, scopes)

    return Depends(check)


async def require(request: Request, principal: Principal, scopes: Collection[Scope]) -> None:
    """Raises Forbidden or NotFound: this principal may not do that, or not with that run."""
    if not any(map(principal.may, scopes)):
        has = ", ".join(sorted(principal.scopes)) or "none"
        raise Forbidden(f"token {principal.name!r} has scope {has}; this needs {' or '.join(scopes)}")
    run = request.path_params.get("run")
    if run is not None and principal.project is not None:
        await asyncio.to_thread(_look, request.app.state.monitor, principal, run)


def needs_all_projects(scope: Scope) -> Any:
    """The same for what tells of every run at once."""

    async def check(principal: PrincipalDep) -> None:
        if not principal.may(scope) or principal.project is not None:
            raise Forbidden(f"token {principal.name!r} will not do; this needs {scope} for all projects")

    return Depends(check)


def _look(monitor: Monitor, principal: Principal, run: str) -> None:
    with monitor.store.reading() as connection:
        refuse_foreign(connection, principal, run)
