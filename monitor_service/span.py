"""A span: which stretch of a run is asked for, by steps, by time and by attempts."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement

from monitor_service import tables


@dataclass(frozen=True)
class Span:
    """A stretch of a run, both ends included; what is ``None`` is open."""

    from_step: int | None = None
    to_step: int | None = None
    since: datetime | None = None
    until: datetime | None = None
    attempts: Collection[int] = ()

    def conditions(self) -> Iterator[ColumnElement[bool]]:
        """That an event lies within it."""
        known = tables.events.c
        if self.from_step is not None:
            yield known.step >= self.from_step
        if self.to_step is not None:
            yield known.step <= self.to_step
        if self.since is not None:
            yield known.time >= self.since
        if self.until is not None:
            yield known.time <= self.until
        if self.attempts:
            yield known.attempt.in_(self.attempts)
