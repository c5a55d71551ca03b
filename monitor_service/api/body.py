"""Reads the body of a request as a message: bounded, perhaps gzipped, refused with field and reason."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect

from monitor_service.errors import (
    BodyTooLarge,
    InvalidMessage,
    MalformedBody,
    Violation,
    WrongMediaType,
)
from monitor_service.settings import Settings
from shared.base import Message

INLINE_BYTES = 64 * 1024
"""Bodies up to here are parsed in the event loop; larger ones would keep the others waiting."""

MAX_VIOLATIONS = 10
MOST_DETAILS = 1000
"""Pydantic describes all mistakes or none: for a million of them that takes ten seconds and a gigabyte."""

FOUND_LENGTH = 80

M = TypeVar("M", bound=Message)


async def read_message(request: Request, model: type[M], settings: Settings) -> M:
    """The message in the body.

    Raises:
        WrongMediaType, BodyTooLarge, MalformedBody, InvalidMessage: with what was found and what would do.
    """
    body = await _read(request, settings)
    if len(body) <= INLINE_BYTES:
        return parse(model, body)
    return await asyncio.to_thread(parse, model, body)


def parse(model: type[M], body: bytes) -> M:
    """The message that the JSON text holds."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        if error.error_count() > MOST_DETAILS:
            count = error.error_count()
            raise InvalidMessage([Violation("body", f"{count} mistakes", "too many to name")]) from error
        details = error.errors(include_url=False)
        if details[0]["type"] == "json_invalid":
            raise MalformedBody(f"the body is not JSON: {details[0]['ctx']['error']}") from error
        raise InvalidMessage([_violation(detail) for detail in details[:MAX_VIOLATIONS]]) from error
    except OverflowError as error:  # a moment at the edge of the calendar, moved to UTC
        raise InvalidMessage([Violation("body", "a time", f"it is out of range: {error}")]) from error


def _violation(detail: ErrorDetails) -> Violation:
    where = ".".join(str(part) for part in detail["loc"]) or "body"
    return Violation(where, shown(detail["input"]), detail["msg"])


def shown(value: Any) -> str:
    """A value as a person may see it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= FOUND_LENGTH else f"{text[:FOUND_LENGTH]}…"


async def _read(request: Request, settings: Settings) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise WrongMediaType("Content-Type", kind, "application/json")
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip"):
        raise WrongMediaType("Content-Encoding", coding, "gzip, or leave it out")
    chunks = _bounded(request, settings.max_body_bytes)
    if coding == "gzip":
        return await _unpack(chunks, settings.max_unpacked_bytes)
    return b"".join([chunk async for chunk in chunks])


async def _bounded(request: Request, limit: int) -> AsyncIterator[bytes]:
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise BodyTooLarge("body", limit)
            yield chunk
    except ClientDisconnect as error:
        raise MalformedBody("the sender went away before the end of the body") from error


async def _unpack(chunks: AsyncIterator[bytes], limit: int) -> bytes:
    """Unzip as it comes, and never more than ``limit`` bytes of it."""
    unzip = zlib.decompressobj(wbits=31)
    unpacked = bytearray()
    try:
        async for chunk in chunks:
            unpacked += unzip.decompress(chunk, limit + 1 - len(unpacked))
            if len(unpacked) > limit:
                raise BodyTooLarge("unpacked body", limit)
    except zlib.error as error:
        raise MalformedBody(f"the body is not gzip: {error}") from error
    if not unzip.eof or unzip.unused_data:
        raise MalformedBody("the gzipped body is cut short, or something follows it")
    return bytes(unpacked)
