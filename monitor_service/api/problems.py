"""Errors as answers: ``application/problem+json`` (RFC 9457) with what was found and what would do."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import DatabaseError, OperationalError
from starlette.exceptions import HTTPException

from monitor_service.api.body import shown
from monitor_service.errors import (
    BodyTooLarge,
    Conflict,
    InvalidMessage,
    MalformedBody,
    MonitorError,
    NotFound,
    StoreUnavailable,
    Violation,
    WrongMediaType,
)

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

ANSWERS: dict[type[MonitorError], tuple[int, str]] = {
    NotFound: (404, "Not found"),
    Conflict: (409, "Conflict"),
    BodyTooLarge: (413, "Body too large"),
    WrongMediaType: (415, "Media type not supported"),
    MalformedBody: (400, "Malformed body"),
    InvalidMessage: (422, "Invalid message"),
    StoreUnavailable: (503, "Storage unavailable"),
}
"""Status and title of each error that a request can meet."""

RETRY_AFTER_S = "5"


def status_of(error: MonitorError) -> int:
    """The HTTP status that answers the error."""
    return ANSWERS[type(error)][0]


def add_problem_handlers(app: FastAPI) -> None:
    """Let every refusal of this app be a problem document."""
    app.add_exception_handler(MonitorError, _monitor_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(DatabaseError, _database_error)
    app.add_exception_handler(Exception, _our_mistake)  # starlette still logs the traceback


def problem(
    status: int, title: str, detail: str, headers: Mapping[str, str] | None = None, **more: Any
) -> Response:
    """One problem document; ``type`` is made from the title and stays the same for ever."""
    kind = f"urn:trainhealth:problem:{title.lower().replace(' ', '-')}"
    body = {"type": kind, "title": title, "status": status, "detail": detail, **more}
    return Response(json.dumps(body), status, headers, media_type=MEDIA_TYPE)


async def _monitor_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MonitorError)
    status, title = ANSWERS[type(error)]
    headers = {"Retry-After": RETRY_AFTER_S} if status == 503 else None
    if isinstance(error, InvalidMessage):
        return problem(status, title, str(error), headers, errors=[asdict(one) for one in error.violations])
    return problem(status, title, str(error), headers)


async def _invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    violations = [
        Violation(".".join(map(str, one["loc"])), shown(one.get("input")), one["msg"])
        for one in error.errors()
    ]
    return await _monitor_error(request, InvalidMessage(violations))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title, where = str(error.detail).capitalize(), f"{request.method} {request.url.path}"
    return problem(error.status_code, title, where, error.headers)


async def _database_error(request: Request, error: Exception) -> Response:
    if type(error) not in (DatabaseError, OperationalError):
        raise error  # a statement that the database does not understand is our mistake
    log.error("%s %s: the database failed: %s", request.method, request.url.path, error)
    return await _monitor_error(request, StoreUnavailable("the database cannot be read now"))


async def _our_mistake(request: Request, error: Exception) -> Response:
    return problem(500, "Internal error", f"{type(error).__name__}; the monitor's log has the details")
