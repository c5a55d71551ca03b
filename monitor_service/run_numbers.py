"""How the numbers of a run in ``/metrics`` are read from its facts, as these stand in the database: as JSON.

No model is built for 500 runs at each scrape. Numbers that JSON can't say stand there as texts.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

RESULTS = {"good": "valid", "bad": "invalid", "sealed": "unverified"}
"""What became of a checkpoint, by the state that it reached."""

DROPPED = {"steps": "steps", "events": "events", "rejected": "batches"}

Number = float | int | str
Values = Mapping[str, Number]
"""By the values of the family's own labels, joined with ``/``."""


@dataclass
class Seen:
    """What one scrape sees of one run."""

    row: Any
    facts: Mapping[str, Any]
    readings: Mapping[str, Any]
    rollbacks: Mapping[str, int] = field(default_factory=dict)
    """Ordered rollbacks that have ended, by ``trigger/outcome``."""
    pending: Mapping[str, float] = field(default_factory=dict)
    """When the oldest unanswered command was ordered, Unix seconds, by kind."""

    @cached_property
    def wire(self) -> Mapping[str, Any]:
        """What is known of the way that the run's batches take."""
        found: Mapping[str, Any] = self.facts.get("wire", {})
        return found

    @cached_property
    def sessions(self) -> Sequence[Mapping[str, Any]]:
        """The lives of its trainer, the newest last."""
        return list(self.wire.get("sessions", {}).values())


def moment(text: str | None) -> float:
    """Unix seconds of a moment as it stands among the facts, 0 when there is none."""
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def fact(name: str) -> Callable[[Seen], Any]:
    return lambda seen: seen.facts.get(name)


def reading(name: str) -> Callable[[Seen], Any]:
    return lambda seen: seen.readings.get(name)


def latest(series: str) -> Callable[[Seen], Any]:
    return lambda seen: seen.readings.get("latest", {}).get(series)


def newest(seen: Seen) -> Any:
    return seen.readings.get("latest", {})


def at_least(known: Iterable[str]) -> Callable[[Mapping[str, Number] | None], Values]:
    """Counts with a 0 for what is known but has not happened."""
    zeros = {str(one): 0 for one in known}  # not enums, whose hashes are slow
    return lambda counts: zeros | dict(counts or {})


def reached(seen: Seen) -> Any:
    """After the end: how many updates were applied, as the page says it, too."""
    ended = seen.facts.get("ended")
    told = ended.get("step") if ended is not None else None
    return seen.facts.get("step") if told is None else told


def rollbacks(seen: Seen) -> Values:
    by_guard = seen.facts.get("rollbacks", {}).get("guard", 0)
    return {**seen.rollbacks, "guard/applied": by_guard}


def results(states: Mapping[str, int] | None) -> Values:
    return {result: (states or {}).get(state, 0) for state, result in RESULTS.items()}


def interval(seen: Seen) -> Number | None:
    steps, seconds = seen.row.checkpoint_interval_steps, seen.facts.get("step_seconds")
    return steps * seconds if steps and isinstance(seconds, float | int) else None


def good_step(seen: Seen) -> Number:
    good = seen.facts.get("last_good")
    return int(good["step"]) if good else -1


def missing(seen: Seen) -> Number:
    return sum([int(one["last_seq"] - one["received"]) for one in seen.sessions])


def spool_bytes(seen: Seen) -> Number:
    spooled: Number = seen.sessions[-1].get("outbox", {}).get("spool_bytes", 0) if seen.sessions else 0
    return spooled


def dropped(lost: Mapping[str, int]) -> Values:
    return {name: lost.get(key, 0) for key, name in DROPPED.items()}


def clock_offset(seen: Seen) -> Number | None:
    """Of the newest step: how far the trainer's clock was ahead of ours when we received it."""
    at, ours = seen.facts.get("step_time"), seen.facts.get("last_step_at")
    return at - moment(ours) if isinstance(at, float | int) and ours else None
