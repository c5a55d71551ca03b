"""Answers as JSON text that pydantic writes, so that NaN stays ``"NaN"`` on every way out."""

import hashlib

from fastapi import Request, Response

from shared.base import Message


def answer(message: Message, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """The message as an HTTP response."""
    return Response(message.model_dump_json(), status, headers, media_type="application/json")


def answer_if_changed(request: Request, message: Message) -> Response:
    """The message, or 304 if the client has just this one already (``ETag``, ``If-None-Match``)."""
    text = message.model_dump_json()
    tag = f'"{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    known = {one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")}
    if tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(text, 200, headers, media_type="application/json")
