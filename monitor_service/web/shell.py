"""What every page has: the templates, the headers that bind a browser, and the page for what went wrong."""

from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates

from monitor_service.web import words
from monitor_service.web.run_page import first_look

HERE = Path(__file__).parent

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",  # a page tells the present; going back must not show the past as present
}

_REMEDIES = {
    HTTPStatus.FORBIDDEN: "Sign in with a token that may do this, or ask whoever runs this monitor for one.",
    HTTPStatus.NOT_FOUND: (
        "Check the address. If the trainer has only just started, it may not have reached this monitor yet: "
        "load the page again in a moment."
    ),
    HTTPStatus.CONFLICT: "Go back to the run, and look how it is now.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "Go back to the page before, and follow its links.",
    HTTPStatus.TOO_MANY_REQUESTS: "Wait a moment, then load the page again.",
    HTTPStatus.SERVICE_UNAVAILABLE: (
        "Nothing is lost: trainers keep what they tell, and send it again. Load the page again in a moment."
    ),
}
_HEADINGS = {
    HTTPStatus.NOT_FOUND: "Not here",
    HTTPStatus.FORBIDDEN: "Not allowed",
    HTTPStatus.UNPROCESSABLE_ENTITY: "This address will not do",
    HTTPStatus.SERVICE_UNAVAILABLE: "The monitor cannot read its data now",
}


RUN_MODULES = (
    *("vendor/uPlot.esm.js", "ask.js", "chart.js", "format.js", "frame.js", "heat.js", "keys.js", "live.js"),
    *("marks.js", "numbers_table.js", "series.js", "theme.js", "times.js", "tooltip.js"),
)
"""What ``run.js`` stands on: named in the page, a browser need not find it out file by file."""


def _templates() -> Jinja2Templates:
    templates = Jinja2Templates(directory=HERE / "templates")
    templates.env.trim_blocks = templates.env.lstrip_blocks = True
    templates.env.filters.update(words.FILTERS)
    templates.env.globals.update(
        static=lambda name: f"/static/{name}", run_modules=RUN_MODULES, first_look=first_look
    )
    return templates


TEMPLATES = _templates()


def page(request: Request, template: str, context: dict[str, Any], status_code: int = 200) -> Response:
    """A page from its template."""
    return TEMPLATES.TemplateResponse(request, template, context, status_code, headers=SECURITY_HEADERS)


def error_page(request: Request, status: int, title: str, detail: str) -> Response:
    """The page for a refusal: what was found, and what would do."""
    context = {
        "heading": _HEADINGS.get(HTTPStatus(status), title),
        "reason": detail[:1].upper() + detail[1:],
        "remedy": _REMEDIES.get(HTTPStatus(status), "The monitor's log has the details."),
        "status": status,
    }
    return page(request, "error.html", context, status)


class _Revalidated(StaticFiles):
    """Browsers keep the files but ask each time whether they changed: no old script after an upgrade."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def mount_static(app: FastAPI) -> None:
    """Serve stylesheets, scripts and the vendored chart library under ``/static``."""
    app.mount("/static", _Revalidated(directory=HERE / "static"), name="static")
