"""Reads the body of a request as a message: bounded, perhaps compressed, refused with field and reason."""

import asyncio
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect

from monitor_service.api import packed
from monitor_service.api.headers import fields_of
from monitor_service.errors import (
    BodyTooLarge,
    InvalidMessage,
    MalformedBody,
    Violation,
    WrongMediaType,
)
from monitor_service.settings import Settings
from shared.base import Message

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

INLINE_BYTES = 64 * 1024
"""Bodies up to here are parsed in the event loop; larger ones would keep the others waiting."""

MAX_VIOLATIONS = 10
MOST_DETAILS = 1000
"""Pydantic describes all mistakes or none: for a million of them that takes ten seconds and a gigabyte."""

FOUND_LENGTH = 80

JSON = "application/json"
PACKED = "application/msgpack"

_UNPACKERS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(wbits=31),
    "zstd": lambda: zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: 23}),
}
"""By Content-Encoding. A zstd window takes 8 MiB at most, as RFC 9659 has it."""

M = TypeVar("M", bound=Message)


async def read_message(request: Request, model: type[M], settings: Settings) -> M:
    """The message in the body.

    Raises:
        WrongMediaType, BodyTooLarge, MalformedBody, InvalidMessage: with what was found and what would do.
    """
    kind = _kind_of(request)
    body = await _read(request, settings)
    if len(body) <= INLINE_BYTES:
        return parse(model, body, kind)
    return await asyncio.to_thread(parse, model, body, kind)


def parse(model: type[M], body: bytes, kind: str = JSON) -> M:
    """The message that the JSON text, or the MessagePack, holds."""
    try:
        if kind == JSON:
            return model.model_validate_json(body)
        return model.model_validate(packed.unpack(body))
    except packed.Unreadable as error:
        raise MalformedBody(f"the body is not a message in MessagePack: {error}") from error
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


def _kind_of(request: Request) -> str:
    kind = fields_of(request.scope).get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (JSON, PACKED):
        raise WrongMediaType("Content-Type", kind, f"{JSON} or {PACKED}")
    return kind


async def _read(request: Request, settings: Settings) -> bytes:
    coding = fields_of(request.scope).get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", *_UNPACKERS):
        raise WrongMediaType("Content-Encoding", coding, "gzip or zstd, or leave it out")
    chunks = bounded(request, settings.max_body_bytes)
    if coding != "identity":
        return await _unpack(chunks, coding, settings.max_unpacked_bytes)
    return b"".join([chunk async for chunk in chunks])


async def bounded(request: Request, limit: int, what: str = "body") -> AsyncIterator[bytes]:
    """What is sent, piece by piece.

    Raises:
        BodyTooLarge: more than ``limit`` bytes of ``what``. MalformedBody: the sender went away.
    """
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise BodyTooLarge(what, limit)
            if chunk:  # the last one is empty, and a decompressor at its end takes no more
                yield chunk
    except ClientDisconnect as error:
        raise MalformedBody(f"the sender went away before the end of the {what}") from error


async def _unpack(chunks: AsyncIterator[bytes], coding: str, limit: int) -> bytes:
    """Decompress as it comes, and never more than ``limit`` bytes of it."""
    unzip = _UNPACKERS[coding]()
    unpacked = bytearray()
    try:
        async for chunk in chunks:
            unpacked += unzip.decompress(chunk, limit + 1 - len(unpacked))
            if len(unpacked) > limit:
                raise BodyTooLarge("unpacked body", limit)
    except (zlib.error, zstd.ZstdError, EOFError) as error:  # zstd: more came after its end
        raise MalformedBody(f"the body is not {coding}: {error}") from error
    if not unzip.eof or unzip.unused_data:
        raise MalformedBody(f"the {coding} body is cut short, or something follows it")
    return bytes(unpacked)
