"""Errors as answers: ``application/problem+json`` (RFC 9457) with what was found and what would do.

Whoever opens a page in a browser gets a page instead, which says the same.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import DatabaseError, DataError, OperationalError
from starlette.exceptions import HTTPException

from monitor_service.api.body import shown
from monitor_service.api.headers import SECURITY
from monitor_service.errors import (
    AnotherRun,
    AttemptTaken,
    BodyTooLarge,
    Conflict,
    Forbidden,
    InvalidMessage,
    KeyReused,
    MalformedBody,
    MonitorError,
    NotAuthenticated,
    NotFound,
    StoreUnavailable,
    TooManyRequests,
    TooManyStreams,
    Violation,
    WrongHost,
    WrongMediaType,
)

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

ANSWERS: dict[type[MonitorError], tuple[int, str]] = {
    NotFound: (404, "Not found"),
    NotAuthenticated: (401, "Not authenticated"),
    Forbidden: (403, "Forbidden"),
    Conflict: (409, "Conflict"),
    AnotherRun: (409, "Another run"),
    AttemptTaken: (409, "Attempt taken"),
    KeyReused: (422, "Key reused"),
    WrongHost: (421, "Wrong host"),
    TooManyRequests: (429, "Too many requests"),
    BodyTooLarge: (413, "Body too large"),
    WrongMediaType: (415, "Media type not supported"),
    MalformedBody: (400, "Malformed body"),
    InvalidMessage: (422, "Invalid message"),
    TooManyStreams: (503, "Too many streams"),
    StoreUnavailable: (503, "Storage unavailable"),
}
"""Status and title of each error that a request can meet."""

RETRY_AFTER_S = "5"

_LAST = {"Connection": "close"}
"""The server ends the connection after a mistake: a client that is not told would ask there once more."""

ErrorPage = Callable[[Request, int, str, str], Response]
"""Makes a page of a status, a title and what was found."""

_FOR_PROGRAMS = ("/api/", "/metrics", "/healthz", "/openapi.json", "/static/")


def status_of(error: MonitorError) -> int:
    """The HTTP status that answers the error."""
    return ANSWERS[type(error)][0]


def add_problem_handlers(app: FastAPI, page: ErrorPage) -> None:
    """Let every refusal of this app be a problem document, or a page where a page was asked for."""
    app.state.error_page = page
    app.add_exception_handler(MonitorError, _monitor_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(DatabaseError, _database_error)
    app.add_exception_handler(Exception, _our_mistake)  # starlette still logs the traceback


def wants_page(request: Request) -> bool:
    """Whether a person's browser waits for a page."""
    is_ours = not request.url.path.startswith(_FOR_PROGRAMS)
    return is_ours and "text/html" in request.headers.get("accept", "")


def refusal(request: Request, error: MonitorError) -> Response:
    """The answer to an error in the form that suits the one who asks."""
    if not wants_page(request):
        return answer_to(error)
    status, title = ANSWERS[type(error)]
    return _page(request, status, title, _for_people(str(error)), _headers(error))


def _for_people(detail: str) -> str:
    """Who reads a page asked with an address: so is a part of it called."""
    field, _, found = detail.partition(": ")
    place, _, name = field.partition(".")
    return f"“{name}” in the address: {found}" if place in ("query", "path") and found else detail


def _page(
    request: Request, status: int, title: str, detail: str, headers: Mapping[str, str] | None = None
) -> Response:
    page: Response = request.app.state.error_page(request, status, title, detail)
    page.headers.update(headers or {})
    return page


def problem(
    status: int, title: str, detail: str, headers: Mapping[str, str] | None = None, **more: Any
) -> Response:
    """One problem document; ``type`` is made from the title and stays the same for ever."""
    kind = f"urn:trainhealth:problem:{title.lower().replace(' ', '-')}"
    body = {"type": kind, "title": title, "status": status, "detail": detail, **more}
    return Response(json.dumps(body), status, headers, media_type=MEDIA_TYPE)


async def answer_or_raise(request: Request, error: Exception) -> Response:
    """What the app's handlers answer, for a layer outside of theirs. Raises ``error`` if it is ours."""
    if isinstance(error, MonitorError):
        return await _monitor_error(request, error)
    if isinstance(error, DatabaseError):
        return await _database_error(request, error)
    raise error


async def _monitor_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MonitorError)
    request.app.state.refusals.note(request.scope, status_of(error), error)
    return refusal(request, error)


def answer_to(error: MonitorError) -> Response:
    """The problem document for an error."""
    status, title = ANSWERS[type(error)]
    headers = _headers(error)
    if isinstance(error, InvalidMessage):
        return problem(status, title, str(error), headers, errors=[asdict(one) for one in error.violations])
    return problem(status, title, str(error), headers)


def _headers(error: MonitorError) -> dict[str, str] | None:
    if isinstance(error, (StoreUnavailable, TooManyStreams)):
        return {"Retry-After": RETRY_AFTER_S}
    if isinstance(error, TooManyRequests):
        return {"Retry-After": str(error.retry_after_s)}
    if isinstance(error, NotAuthenticated):
        return {"WWW-Authenticate": 'Bearer realm="trainhealth"'}
    return None


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
    if wants_page(request):
        return _page(request, error.status_code, title, f"there is no {request.url.path} here", error.headers)
    return problem(error.status_code, title, where, error.headers)


async def _database_error(request: Request, error: Exception) -> Response:
    if isinstance(error, DataError):  # PostgreSQL: a text with the character NUL
        found = str(getattr(error, "orig", error))
        return await _monitor_error(request, InvalidMessage([Violation("body", "a value", found)]))
    if type(error) not in (DatabaseError, OperationalError):
        raise error  # a statement that the database does not understand is our mistake
    log.error("%s %s: the database failed: %s", request.method, request.url.path, error)
    return await _monitor_error(request, StoreUnavailable("the database cannot be read now"))


async def _our_mistake(request: Request, error: Exception) -> Response:
    detail = f"{type(error).__name__}; the monitor's log has the details"
    if wants_page(request):
        return _page(request, 500, "Internal error", detail, _LAST)
    return problem(500, "Internal error", detail, {**SECURITY, **_LAST})  # answered outside of the guard
