"""A log that says the same thing at most once a minute: trouble that repeats must not fill the disk."""

import logging
import time
from collections import Counter

EVERY_S = 60.0


class SparingLog:
    """Warnings by kind, each kind once in ``EVERY_S`` seconds, with the number held back since."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._said_at: dict[str, float] = {}
        self._held_back: Counter[str] = Counter()

    def warning(self, kind: str, message: str, *args: object, with_traceback: bool = False) -> None:
        """Log ``message`` unless one of its ``kind`` was logged within the last minute."""
        now = time.monotonic()
        if now - self._said_at.get(kind, -EVERY_S) < EVERY_S:
            self._held_back[kind] += 1
            return
        self._said_at[kind] = now
        more = self._held_back.pop(kind, 0)
        suffix = f" ({more} more like this since the last line)" if more else ""
        self._log.warning(message + suffix, *args, exc_info=with_traceback)
