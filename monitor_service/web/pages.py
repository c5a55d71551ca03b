"""The pages' routes: all runs, one run, and a page for a run that is not here."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates

from monitor_service.access import refuse_foreign
from monitor_service.api.dependencies import ConnectionDep
from monitor_service.api.permissions import PrincipalDep, needs
from monitor_service.errors import Forbidden, NotFound
from monitor_service.run_list import list_runs
from monitor_service.tokens import Scope
from monitor_service.web import words
from monitor_service.web.run_page import RunPageView

HERE = Path(__file__).parent
RUNS_ON_A_PAGE = 50

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",  # a page tells the present; going back must not show the past as present
}

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


def _templates() -> Jinja2Templates:
    templates = Jinja2Templates(directory=HERE / "templates")
    templates.env.trim_blocks = templates.env.lstrip_blocks = True
    templates.env.filters.update(words.FILTERS)
    templates.env.globals["static"] = lambda name: f"/static/{name}"
    return templates


TEMPLATES = _templates()


def page(request: Request, template: str, context: dict[str, Any], status_code: int = 200) -> Response:
    """A page from its template."""
    return TEMPLATES.TemplateResponse(request, template, context, status_code, headers=SECURITY_HEADERS)


@router.get("/", dependencies=[needs(Scope.READ)])
def fleet(
    request: Request,
    connection: ConnectionDep,
    principal: PrincipalDep,
    cursor: Annotated[str | None, Query()] = None,
) -> Response:
    """All runs, youngest first."""
    runs = list_runs(connection, project=principal.project, limit=RUNS_ON_A_PAGE, cursor=cursor)
    return page(request, "fleet.html", {"page": runs, "signs": words.STATUS})


@router.get("/runs/{run}")
def one_run(request: Request, connection: ConnectionDep, principal: PrincipalDep, run: str) -> Response:
    """All about one run; 404 with what to do if there is none of this name, or it is another project's."""
    if not principal.may(Scope.READ):
        raise Forbidden(f"token {principal.name!r} may not read")
    try:
        refuse_foreign(connection, principal, run)
        view = RunPageView.read(connection, run)
    except NotFound:
        return _no_such_run(request, run)
    return page(request, "run.html", {"page": view})


def _no_such_run(request: Request, run: str) -> Response:
    context = {
        "heading": "No such run",
        "reason": f"This monitor knows no run called “{run}”.",
        "remedy": (
            "Check the name in the address. If the trainer has only just started, it may not have reached "
            "this monitor yet: load the page again in a moment."
        ),
    }
    return page(request, "error.html", context, status_code=404)


class _Revalidated(StaticFiles):
    """Browsers keep the files but ask each time whether they changed: no old script after an upgrade."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def mount_static(app: FastAPI) -> None:
    """Serve stylesheets, scripts and the vendored chart library under ``/static``."""
    app.mount("/static", _Revalidated(directory=HERE / "static"), name="static")
