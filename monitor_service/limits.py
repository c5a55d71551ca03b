"""Rate limits: a bucket of permits for each client, in bounded memory."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from monitor_service.errors import TooManyRequests

MAX_CLIENTS = 10_000
"""So many buckets are kept; whoever was silent longest is forgotten first, with a full bucket."""


class Buckets:
    """A token bucket for each client: ``per_s`` permits come in a second, up to ``burst`` are kept."""

    def __init__(
        self, per_s: float, burst: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_s, self._burst, self._clock = per_s, max(per_s if burst is None else burst, 1.0), clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> None:
        """Take one permit.

        Raises:
            TooManyRequests: none is left; it says when the next one comes.
        """
        now = self._clock()
        left, at = self._buckets.get(client, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._per_s)
        is_enough = left >= 1.0
        self._buckets[client] = (left - 1.0 if is_enough else left, now)
        self._buckets.move_to_end(client)
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        if not is_enough:
            raise TooManyRequests(self._per_s, math.ceil((1.0 - left) / self._per_s))

    def __len__(self) -> int:
        return len(self._buckets)
