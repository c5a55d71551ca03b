"""What the monitor answers: one model for each thing that a page or a program asks for."""

from typing import Any

from pydantic import Field

from monitor_service.concerns import Concern, Risk, RiskLevel, Suggestion
from monitor_service.health import RunStatus
from shared.base import Message, Moment
from shared.commands import Command, CommandState
from shared.events import CheckpointState
from shared.exchange import OutboxCounts


class Cost(Message):
    """What trouble has cost a run so far."""

    skipped_steps: int
    rollbacks: int
    steps_lost: int
    seconds_lost: float


class LastGood(Message):
    """Where a rollback would lead."""

    checkpoint: str
    step: int


class RunSummary(Message):
    """One line of the fleet."""

    run: str
    project: str
    status: RunStatus
    since: Moment
    reasons: list[str]
    attempt: int = Field(description="0 before the first batch.")
    step: int | None
    total_steps: int | None
    started_at: Moment
    last_seen: Moment
    last_step_at: Moment | None
    loss: float | None
    grad_norm: float | None
    findings: int = Field(description="Findings of severity warning and above.")
    last_good_checkpoint: LastGood | None
    cost: Cost
    risk: RiskLevel = Field(description="Of divergence.")


class RunPage(Message):
    """Runs, youngest first."""

    items: list[RunSummary]
    next_cursor: str | None


class AttemptView(Message):
    """A stretch of the run. Steps of older attempts from ``start_step`` on are abandoned."""

    attempt: int
    start_step: int
    reason: str | None
    checkpoint: str | None
    started_at: Moment


class TransitionView(Message):
    """One change of status."""

    from_status: RunStatus
    to_status: RunStatus
    at: Moment
    step: int | None
    reasons: list[str]


class RunDetail(RunSummary):
    """All about a run except its long lists."""

    config: dict[str, Any]
    checkpoint_interval_steps: int | None
    series: list[str] = Field(description="Names of the series that it has sent.")
    attempts: list[AttemptView]
    transitions: list[TransitionView]


class CommandChange(Message):
    """A command reached a state."""

    state: CommandState
    time: Moment
    message: str


class CommandView(Command):
    """A command with its life so far."""

    run: str
    state: CommandState
    history: list[CommandChange]


class CommandPage(Message):
    """Commands of a run, youngest first."""

    items: list[CommandView]


class HealthView(Message):
    """How a run is, since when, and why."""

    run: str
    status: RunStatus
    since: Moment
    reasons: list[str]
    step: int | None
    total_steps: int | None
    last_seen: Moment
    last_step_at: Moment | None
    last_good_checkpoint: LastGood | None
    open_commands: list[CommandView]
    cost: Cost
    risk: Risk = Field(description="Of divergence, and what speaks for it.")
    concerns: list[Concern] = Field(description="The monitor's own rules that speak now.")
    suggestion: Suggestion | None = Field(description="A rollback that waits for a person to accept it.")
    needs_person: str | None = Field(description="Why nothing more is ordered without a person.")


class RawColumns(Message):
    """Points of one series as columns; ``null`` never stands for NaN: a step without a value is left out."""

    attempt: list[int]
    step: list[int]
    time: list[float]
    value: list[float]


class Gathered(Message):
    """Points of one series, gathered by ranges; ranges without points are left out.

    ``min`` and ``max`` are over finite values, ``null`` where there is none; ``last`` may be anything.
    """

    min: list[float | None]
    max: list[float | None]
    last: list[float]
    count: list[int]
    nonfinite: list[int]


class BucketColumns(Gathered):
    """By ranges of steps."""

    step_from: list[int]
    step_to: list[int]


class RawSeries(Message):
    """Every point of some series."""

    run: str
    attempt: str
    series: dict[str, RawColumns]


class BucketSeries(Message):
    """Some series, thinned out for drawing."""

    run: str
    attempt: str
    series: dict[str, BucketColumns]


class TimeBucketColumns(Gathered):
    """By ranges of Unix time."""

    time_from: list[float]
    time_to: list[float]


class TimeBucketSeries(Message):
    """Some series along time, thinned out for drawing."""

    run: str
    attempt: str
    series: dict[str, TimeBucketColumns] = Field(description="By name.")


class EventView(Message):
    """An event as it came in ``data``, with what the monitor knows about it."""

    id: int
    attempt: int
    step: int
    time: Moment
    received_at: Moment
    type: str
    data: dict[str, Any]


class EventPage(Message):
    """Events of a run in the order of arrival."""

    items: list[EventView]


class CheckpointView(Message):
    """The latest known state of a checkpoint."""

    checkpoint: str
    attempt: int
    step: int
    state: CheckpointState
    size_bytes: int | None
    probe_loss: float | None
    seconds: float | None
    failed_check: str | None
    time: Moment


class Gap(Message):
    """Batches that did not come, both ends included."""

    first_seq: int
    last_seq: int


class SessionView(Message):
    """What came from one life of one trainer process."""

    session: str
    last_seq: int
    received: int = Field(description="Batches stored.")
    missing: int = Field(description="Batches below ``last_seq`` that did not come, so far.")
    gaps: list[Gap] = Field(description="Which they are; the first 100 ranges.")
    outbox: OutboxCounts = Field(description="What the trainer's outbox had to tell in its last batch.")
    received_at: Moment


class SessionPage(Message):
    """Sessions of a run, the one heard last first."""

    items: list[SessionView]


class CheckpointPage(Message):
    """Checkpoints of a run, youngest step first."""

    items: list[CheckpointView]
