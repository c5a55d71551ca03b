"""A whole run as one file, out and in."""

import tempfile
from collections.abc import Iterator
from typing import IO

from alembic.runtime.migration import MigrationContext
from anyio import to_thread
from fastapi import APIRouter, Request, Response
from sqlalchemy import Connection
from starlette.responses import StreamingResponse

from monitor_service import archive
from monitor_service.access import Principal
from monitor_service.api.answers import answer
from monitor_service.api.body import bounded
from monitor_service.api.dependencies import Monitor, MonitorDep
from monitor_service.api.ingest import RunName
from monitor_service.api.paths import API
from monitor_service.api.permissions import PrincipalDep, needs
from monitor_service.errors import WrongMediaType
from monitor_service.tokens import Scope
from monitor_service.views import RunDetail

MEDIA_TYPE = "application/zip"
IN_MEMORY_BYTES = 4 << 20
CHUNK_BYTES = 1 << 20
_FILE = {"schema": {"type": "string", "format": "binary"}}

router = APIRouter(prefix=API, tags=["archive"])


@router.get(
    "/runs/{run}/export",
    response_class=StreamingResponse,
    responses={200: {"content": {MEDIA_TYPE: _FILE}}},
    dependencies=[needs(Scope.READ)],
)
def export(run: RunName, monitor: MonitorDep) -> Response:
    """The whole run as one file, which ``POST /api/v1/import`` reads."""
    file = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES)  # noqa: SIM115 - closed after the last byte
    try:
        _write(monitor, run, file)
    except BaseException:
        file.close()
        raise
    headers = {"Content-Disposition": f'attachment; filename="{run}.zip"'}
    return StreamingResponse(_chunks(file), media_type=MEDIA_TYPE, headers=headers)


@router.post(
    "/import",
    status_code=201,
    response_model=RunDetail,
    openapi_extra={"requestBody": {"required": True, "content": {MEDIA_TYPE: _FILE}}},
    dependencies=[needs(Scope.INGEST), needs(Scope.CONTROL)],
)
async def bring_in(request: Request, monitor: MonitorDep, principal: PrincipalDep) -> Response:
    """Store a run that was exported. One that is here already is never written over."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != MEDIA_TYPE:
        raise WrongMediaType("Content-Type", kind, MEDIA_TYPE)
    with tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES) as file:
        async for chunk in bounded(request, monitor.settings.max_import_bytes, "file"):
            file.write(chunk)
        detail = await to_thread.run_sync(_store, monitor, file, principal, limiter=monitor.long_work)
    return answer(detail, 201, {"Location": f"/api/v1/runs/{detail.run}"})


def _store(monitor: Monitor, file: IO[bytes], principal: Principal) -> RunDetail:
    with monitor.store.reading() as connection:
        revision = _revision(connection)
    name = archive.check(file, revision)
    return monitor.store.write(lambda connection: archive.bring_in(connection, file, name, principal))


def _write(monitor: Monitor, run: str, file: IO[bytes]) -> None:
    engine = monitor.store.engine
    if engine.dialect.name != "sqlite":  # SQLite shows one state within a transaction anyway
        engine = engine.execution_options(isolation_level="REPEATABLE READ")
    with engine.connect() as connection:
        archive.export(connection, run, _revision(connection), file)
    file.seek(0)


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _revision(connection: Connection) -> str:
    return str(MigrationContext.configure(connection).get_current_revision())
