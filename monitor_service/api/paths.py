"""What a request is for, by its method and path, for the layers that stand before the routes."""

import re

from starlette.types import Scope

_EXCHANGE = re.compile(r"/api/v1/runs/([A-Za-z0-9][A-Za-z0-9_.-]{0,99})/exchange")


def run_of_exchange(scope: Scope) -> str | None:
    """The run whose batch this is; ``None`` for every other request."""
    found = _EXCHANGE.fullmatch(scope["path"]) if scope["method"] == "POST" else None
    return None if found is None else found[1]
