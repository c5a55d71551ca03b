"""The one exchange: a batch of columns and events goes in, open commands come back in the reply."""

from itertools import pairwise
from operator import lt
from typing import Annotated, Any, Self

from pydantic import FailFast, Field, model_validator

from shared.base import Message, Moment, Name, SeriesName
from shared.commands import Command
from shared.events import AnyEvent

MAX_STEPS = 20_000
MAX_EVENTS = 2_000
MAX_SERIES = 200
MAX_HOLD_S = 30.0


class RunSpec(Message):
    """What a run is: sent with ``PUT /api/v1/runs/{run}`` before the first batch, and again after a 404."""

    project: Name = "default"
    config: dict[str, Any] = Field(default_factory=dict)
    total_steps: int | None = Field(None, ge=1)
    checkpoint_interval_steps: int | None = Field(None, ge=1)
    started_at: Moment
    identity: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="Made once for a run's folder and kept in it; another training of that name is refused.",
    )


class Columns(Message):
    """Steps as columns: row ``i`` of every column belongs to ``step[i]``.

    ``step`` rises strictly, ``time`` is Unix seconds, and a series has ``None`` where a step has no value.
    """

    # the first mistake ends the check of a column: a list of mistakes would be larger than the body
    step: Annotated[list[int], FailFast()] = Field(default_factory=list, max_length=MAX_STEPS)
    time: Annotated[list[float], FailFast()] = Field(default_factory=list, max_length=MAX_STEPS)
    series: dict[SeriesName, Annotated[list[float | None], FailFast()]] = Field(
        default_factory=dict, max_length=MAX_SERIES
    )

    @model_validator(mode="after")
    def _columns_agree(self) -> Self:
        rows = len(self.step)
        if len(self.time) != rows:
            raise ValueError(f"time has {len(self.time)} values for {rows} steps; send one for each step")
        for name, values in self.series.items():
            if len(values) != rows:
                raise ValueError(
                    f"series {name!r} has {len(values)} values for {rows} steps; send one for each step"
                )
        if self.step and self.step[0] < 0:
            raise ValueError(f"step {self.step[0]} is negative; steps count from 0")
        if not all(map(lt, self.step, self.step[1:])):
            before, after = next(pair for pair in pairwise(self.step) if pair[0] >= pair[1])
            raise ValueError(f"step {after} follows step {before}; steps in a batch rise strictly")
        return self


class OutboxCounts(Message):
    """What the trainer's outbox has done so far in this session, so that every loss is on record."""

    spooled_batches: int = Field(0, ge=0)
    dropped_steps: int = Field(0, ge=0)
    dropped_events: int = Field(0, ge=0)
    rejected_batches: int = Field(0, ge=0)
    pending_batches: int = Field(0, ge=0)
    spool_bytes: int = Field(0, ge=0, description="Disk that waiting batches take.")


class Batch(Message):
    """One sending. ``(session, seq)`` is unique: a repeat with equal content changes nothing."""

    session: str = Field(
        min_length=1,
        max_length=64,
        description="One life of one trainer process; after a slash, a part of what an earlier one left.",
    )
    seq: int = Field(ge=1, description="1, 2, 3 … within the session, without gaps.")
    attempt: int = Field(ge=1)
    columns: Columns = Field(default_factory=Columns)
    events: Annotated[list[AnyEvent], FailFast()] = Field(default_factory=list, max_length=MAX_EVENTS)
    outbox: OutboxCounts = Field(default_factory=OutboxCounts)
    hold_s: float = Field(
        0.0, ge=0, le=MAX_HOLD_S, description="How long the reply may wait for a command, seconds."
    )


class Reply(Message):
    """2xx means committed. A command comes again in each reply until the trainer reports on it."""

    seq: int
    duplicate: bool = False
    commands: list[Command] = Field(default_factory=list)
    withdrawn: list[str] = Field(
        default_factory=list,
        description="Commands to drop if they are not yet carried out; say which it was.",
    )
    server_time: Moment
