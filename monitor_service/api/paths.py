"""What a request is for, by its method and path, for the layers that stand before the routes."""

import re

from starlette.types import Scope

API = "/api/v1"
"""Before each route of the API. Each router has it itself, so that a route tells its whole path."""

_OF_RUN = re.compile(rf"{API}/runs/([A-Za-z0-9][A-Za-z0-9_.-]{{0,99}})/(exchange|health)")


def run_of_exchange(scope: Scope) -> str | None:
    """The run whose batch this is; ``None`` for every other request."""
    return _run_of(scope, "POST", "exchange")


def run_of_health(scope: Scope) -> str | None:
    """The run whose health is asked for; ``None`` for every other request."""
    return _run_of(scope, "GET", "health")


def _run_of(scope: Scope, method: str, part: str) -> str | None:
    found = _OF_RUN.fullmatch(scope["path"]) if scope["method"] == method else None
    return found[1] if found is not None and found[2] == part else None
