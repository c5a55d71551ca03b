"""What was refused to whoever wanted to change something, in the log: often the only place anybody looks.

Readers see the refusal themselves. An Alertmanager without its token does not, and asks again and again: so
of one address and one reason a line is written once a minute.
"""

import logging
import time
from collections import OrderedDict
from threading import Lock

from starlette.types import Scope

log = logging.getLogger(__name__)

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SILENT_S = 60.0
MOST_KNOWN = 1_000


class Refusals:
    """Remembers what it said last, in bounded memory. For any thread."""

    def __init__(self) -> None:
        self._said: OrderedDict[tuple[str, str, int], float] = OrderedDict()
        self._lock = Lock()

    def note(self, scope: Scope, status: int, reason: str) -> None:
        """Write a line about a request that was to change something, unless the same was said just now."""
        if scope["method"] in SAFE_METHODS:
            return
        client = scope.get("client")
        address = str(client[0]) if client else "unknown"
        if self._is_new((address, scope["path"], status)):
            path = scope["path"].encode("unicode_escape").decode()[:200]
            log.warning("%s %s from %s refused, %d: %s", scope["method"], path, address, status, reason)

    def _is_new(self, key: tuple[str, str, int]) -> bool:
        now = time.monotonic()
        with self._lock:
            before = self._said.get(key)
            if before is not None and now - before < SILENT_S:
                return False
            self._said[key] = now
            self._said.move_to_end(key)
            while len(self._said) > MOST_KNOWN:
                self._said.popitem(last=False)
            return True
