"""One JSON line for each request: who asked for what, and how it went. No secret, no query, no body."""

import json
import logging
from collections.abc import Callable
from datetime import datetime
from logging.handlers import WatchedFileHandler

from starlette.types import Scope

from monitor_service.access import Principal

STANDARD_ERROR = "-"


class AccessLog:
    """Writes to a file that may be rotated away under it, to standard error (``-``), or nowhere (empty)."""

    def __init__(self, where: str, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._handler: logging.Handler | None = None
        if where == STANDARD_ERROR:
            self._handler = logging.StreamHandler()
        elif where:
            self._handler = WatchedFileHandler(where, encoding="utf-8", delay=True)

    def note(self, scope: Scope, status: int, seconds: float) -> None:
        """Write down one request that was answered."""
        if self._handler is None:
            return
        principal: Principal | None = scope.get("state", {}).get("principal")
        client = scope.get("client")
        line = {
            "time": self._clock().isoformat(timespec="milliseconds"),
            "client": client[0] if client else None,
            "principal": principal.name if principal else None,
            "token": principal.token if principal else None,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 6),
        }
        record = logging.LogRecord(__name__, logging.INFO, "", 0, json.dumps(line), None, None)
        self._handler.handle(record)

    def close(self) -> None:
        if self._handler is not None:
            self._handler.close()
