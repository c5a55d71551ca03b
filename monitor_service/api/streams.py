"""Live news as server-sent events: of one run, or of all."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from monitor_service.access import Principal
from monitor_service.api.dependencies import Monitor, MonitorDep
from monitor_service.api.guard import address_of, secret_of
from monitor_service.api.ingest import RunName
from monitor_service.api.paths import API
from monitor_service.api.permissions import PrincipalDep, needs
from monitor_service.errors import MonitorError
from monitor_service.news import News, Position
from monitor_service.newsroom import Listener
from monitor_service.queries import run_row
from monitor_service.tokens import Scope as TokenScope

HEARTBEAT_S = 15.0
"""A quiet stream says that it lives; then, and with each news, it is looked whether its token still does."""

MEDIA_TYPE = "text/event-stream"
RETRY_MS = 2000

EXAMPLE = (
    'id: 3.120.4\nevent: transition\ndata: {"run":"demo","from_status":"healthy","to_status":"suspect",'
    '"at":"2026-03-01T12:00:00Z","step":41,"reasons":["nonfinite at step 41: the loss is NaN"]}\n\n'
)
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}, "example": EXAMPLE}}}
}

router = APIRouter(prefix=API, tags=["live"], dependencies=[needs(TokenScope.READ)])

LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", max_length=100)]


class NewsStream(StreamingResponse):
    """An answer that goes on until either side has enough."""

    def __init__(
        self, monitor: Monitor, request: Request, listener: Listener, after: Position | None
    ) -> None:
        self._monitor, self._listener, self._after = monitor, listener, after
        self._secret, self._address = secret_of(request.headers), address_of(request.scope)
        super().__init__(self._body(), media_type=MEDIA_TYPE, headers={"X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._monitor.newsroom.leave(self._listener)

    async def _body(self) -> AsyncIterator[bytes]:
        yield f"retry: {RETRY_MS}\nid: {self._after or self._listener.since}\ndata:\n\n".encode()
        if self._after is not None:
            async for item in self._monitor.newsroom.before(self._listener, self._after):
                yield item.as_text()
        while (text := await self._next()) is not None:
            yield text

    async def _next(self) -> bytes | None:
        """What is told next; ``None`` at the end."""
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                item = await self._listener.waiting.get()
        except TimeoutError:
            return b": still here\n\n" if await self._may_still() else None
        return item.as_text() if item is not None and await self._may_still() else None

    async def _may_still(self) -> bool:
        try:
            return (await self._monitor.door.admit(self._secret, self._address)).may(TokenScope.READ)
        except MonitorError:
            return False


async def _stream(
    monitor: Monitor, request: Request, principal: Principal, run: str | None, last: str | None
) -> NewsStream:
    after = Position.parse(last) if last else None

    def wants(item: News) -> bool:
        return principal.sees(item.project) and run in (None, item.run)

    return NewsStream(monitor, request, await monitor.newsroom.join(wants), after)


@router.get("/stream", response_class=StreamingResponse, responses=_ANSWERS)
async def fleet_stream(
    request: Request, monitor: MonitorDep, principal: PrincipalDep, last_event_id: LastEventId = None
) -> NewsStream:
    """What is new in all runs: ``transition``, ``finding``, ``event``, ``command`` and ``step``."""
    return await _stream(monitor, request, principal, None, last_event_id)


@router.get("/runs/{run}/stream", response_class=StreamingResponse, responses=_ANSWERS)
async def run_stream(
    run: RunName,
    request: Request,
    monitor: MonitorDep,
    principal: PrincipalDep,
    last_event_id: LastEventId = None,
) -> NewsStream:
    """What is new in one run; goes on after ``Last-Event-ID``."""
    await asyncio.to_thread(_check_run, monitor, run)
    return await _stream(monitor, request, principal, run, last_event_id)


def _check_run(monitor: Monitor, run: str) -> None:
    with monitor.store.reading() as connection:
        run_row(connection, run)
