"""What was refused to whoever wanted to change something, in the log: often the only place anybody looks.

Readers see the refusal themselves. An Alertmanager without its token does not, and asks again and again: so
of one address, one kind of refusal and one part of the API a line is written once a minute. What else a path
or a reason holds is the asker's to choose, and would let anybody fill the log. All addresses together write
``MOST_LINES`` a minute.
"""

import logging
import time
from collections import OrderedDict
from threading import Lock

from starlette.types import Scope

from monitor_service.errors import MonitorError

log = logging.getLogger(__name__)

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SILENT_S = 60.0
MOST_LINES = 300
PARTS = frozenset({"alerts", "commands", "exchange", "import", "rules", "runs", "suggestion"})
"""Words of our routes that tell one asker's wishes apart."""

_Key = tuple[str, int, str, str]


class Refusals:
    """Remembers what it said within the last minute, in bounded memory. For any thread."""

    def __init__(self) -> None:
        self._said: OrderedDict[_Key, float] = OrderedDict()  # the oldest first
        self._lock = Lock()

    def note(self, scope: Scope, status: int, error: MonitorError) -> None:
        """Write a line about a request that was to change something, unless the like was said just now."""
        if scope["method"] in SAFE_METHODS:
            return
        client = scope.get("client")
        address = str(client[0]) if client else "unknown"
        if self._is_new((address, status, type(error).__name__, _part(scope["path"]))):
            path = scope["path"].encode("unicode_escape").decode()[:200]
            log.warning("%s %s from %s refused, %d: %s", scope["method"], path, address, status, error)

    def _is_new(self, key: _Key) -> bool:
        now = time.monotonic()
        with self._lock:
            while self._said and now - next(iter(self._said.values())) >= SILENT_S:
                self._said.popitem(last=False)
            if key in self._said or len(self._said) >= MOST_LINES:
                return False
            self._said[key] = now
            return True


def _part(path: str) -> str:
    """Which part of the API a path leads to; empty for any other."""
    return next((word for word in reversed(path.split("/")) if word in PARTS), "")
