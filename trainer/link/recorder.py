"""What training has recorded and nobody has packed yet: two bounded queues, cut into batches."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from threading import Lock
from typing import NamedTuple, TypeVar

from shared.events import Event

ROWS_PER_BATCH = 2_000
"""Below a megabyte of JSON at 20 series: no proxy refuses it, and encoding takes a few milliseconds."""
EVENTS_PER_BATCH = 500

T = TypeVar("T")


class Row(NamedTuple):
    """One applied step: its number, Unix seconds, and its numbers by series."""

    step: int
    time_s: float
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Piece:
    """The content of one batch: one attempt, strictly rising steps."""

    attempt: int
    rows: Sequence[Row] = ()
    events: Sequence[Event] = field(default=())


class Recorder:
    """Takes steps and events from the training thread; the link's thread collects them.

    An append costs about a microsecond and waits for nobody. A full queue drops what arrives and counts it.
    Steps and events have a bound each, so no flood of steps pushes out a finding.
    """

    def __init__(self, max_steps: int, max_events: int) -> None:
        self._steps: deque[tuple[int, Row]] = deque()
        self._events: deque[tuple[int, Event]] = deque()
        self._max_steps, self._max_events = max_steps, max_events
        self._counting = Lock()
        self.dropped_steps = 0
        self.dropped_events = 0
        self.attempt: int | None = None

    def add_step(self, attempt: int, step: int, time_s: float, values: Mapping[str, float]) -> None:
        """Keep a step's numbers; the mapping is copied, so the caller may use it again."""
        if len(self._steps) >= self._max_steps:
            self.count_dropped(steps=1)
            return
        self._steps.append((attempt, Row(step, time_s, dict(values))))

    def add_event(self, attempt: int, event: Event) -> None:
        """Keep an event."""
        if len(self._events) >= self._max_events:
            self.count_dropped(events=1)
            return
        self._events.append((attempt, event))

    def count_dropped(self, steps: int = 0, events: int = 0) -> None:
        """Put a loss on record. From any thread: this path is rare and may take a lock."""
        with self._counting:
            self.dropped_steps += steps
            self.dropped_events += events

    def collect(self, with_steps: bool = True) -> list[Piece]:
        """Everything recorded so far, oldest attempt first, cut to the size of batches.

        Without steps where only events have room left; the steps then stay until their queue overflows.
        """
        steps = _emptied(self._steps) if with_steps else []
        events = _emptied(self._events)
        attempts = sorted({attempt for attempt, _ in steps} | {attempt for attempt, _ in events})
        if attempts:
            self.attempt = attempts[-1]
        return [
            piece
            for attempt in attempts
            for piece in _cut(
                attempt,
                [row for its, row in steps if its == attempt],
                [event for its, event in events if its == attempt],
            )
        ]

    def abandon(self) -> None:
        """Drop and count what is left: at the very end, when there was no room for it anywhere."""
        self.count_dropped(len(_emptied(self._steps)), len(_emptied(self._events)))


def _emptied(queue: deque[T]) -> list[T]:
    """What the queue holds now; what is appended meanwhile stays for the next time."""
    taken: list[T] = []
    with suppress(IndexError):  # at the very end another thread may be emptying it too
        for _ in range(len(queue)):
            taken.append(queue.popleft())
    return taken


def _cut(attempt: int, rows: list[Row], events: list[Event]) -> Iterator[Piece]:
    """Batches of one attempt. Events go first: ``attempt_started`` must not come after its own steps."""
    event_chunks = [events[i : i + EVENTS_PER_BATCH] for i in range(0, len(events), EVENTS_PER_BATCH)]
    for some_rows, some_events in zip_longest(_rising(rows), event_chunks, fillvalue=()):
        yield Piece(attempt, some_rows, some_events)


def _rising(rows: list[Row]) -> Iterator[list[Row]]:
    """Stretches in which steps rise strictly, none longer than a batch may be."""
    cuts = [i for i, (before, after) in enumerate(pairwise(rows), 1) if after.step <= before.step]
    for start, stop in pairwise([0, *cuts, len(rows)]):
        for first in range(start, stop, ROWS_PER_BATCH):
            yield rows[first : min(first + ROWS_PER_BATCH, stop)]
