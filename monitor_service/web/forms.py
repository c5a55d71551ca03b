"""Forms: each carries a text that follows from a cookie of its own, so that no other page can fill it in."""

import hashlib
import hmac
import secrets
from typing import Any
from urllib.parse import parse_qs

from fastapi import Request, Response

from monitor_service.errors import BodyTooLarge, Forbidden, WrongMediaType
from monitor_service.web.shell import TEMPLATES, page

FORM_COOKIE = "trainhealth_form"
FORM_TYPE = "application/x-www-form-urlencoded"
MAX_FORM_BYTES = 8 * 1024


def form_token(request: Request) -> str:
    """What a form must carry, for the browser that asks."""
    cookie = request.cookies.get(FORM_COOKIE) or getattr(request.state, "form_cookie", "")
    return hashlib.sha256(f"form {cookie}".encode()).hexdigest() if cookie else ""


TEMPLATES.env.globals["form_token"] = form_token


def page_with_form(request: Request, template: str, context: dict[str, Any], status: int = 200) -> Response:
    """A page whose form this browser, and no other, can send."""
    is_new = FORM_COOKIE not in request.cookies
    if is_new:
        request.state.form_cookie = secrets.token_urlsafe(32)
    answer = page(request, template, context, status)
    if is_new:
        set_cookie(answer, request, FORM_COOKIE, request.state.form_cookie, None)
    return answer


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form that one of our own pages sent.

    Raises:
        WrongMediaType, BodyTooLarge: it is no form, or a very long one.
        Forbidden: it does not carry what the page gave it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != FORM_TYPE:
        raise WrongMediaType("Content-Type", kind, FORM_TYPE)
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise BodyTooLarge("form", MAX_FORM_BYTES)
    fields = {name: values[-1] for name, values in parse_qs(body.decode("latin-1")).items()}
    expected = form_token(request)
    if not expected or not hmac.compare_digest(expected.encode(), fields.get("form_token", "").encode()):
        raise Forbidden(
            "the form is not from a page of this browser, or cookies are off; load the page again"
        )
    return fields


def set_cookie(answer: Response, request: Request, name: str, value: str, max_age_s: float | None) -> None:
    """A cookie that scripts cannot read and other sites never send."""
    answer.set_cookie(
        name,
        value,
        max_age=None if max_age_s is None else int(max_age_s),
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
