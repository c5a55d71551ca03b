"""What is known about one run after its latest batch: a small row, folded forward batch by batch."""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import singledispatchmethod

from pydantic import Field

from monitor_service.concerns import Judgement
from monitor_service.history import LossHistory
from monitor_service.landmarks import (
    Alarm,
    End,
    GoodCheckpoint,
    Prediction,
    Return,
    TakenBack,
    Unanswered,
    ValidCheckpoint,
)
from monitor_service.readings import Count, Readings
from monitor_service.record import Record
from monitor_service.wire import Wire
from shared.base import Moment
from shared.events import (
    AttemptStarted,
    CheckpointChanged,
    Event,
    Finding,
    Rollback,
    RunEnded,
    Severity,
    StepSkipped,
)
from shared.exchange import Batch, Columns

LOSS = "loss"
GRAD_NORM = "grad_norm"
OTHER = "other"
ALARMING = frozenset({Severity.ERROR, Severity.CRITICAL})
PREDICTS, DIVERGENCE = "predicts", "divergence"
"""How a finding says in its reading that it predicts a divergence."""

MAX_TOLD = 8
"""Processes that are remembered for each withdrawal."""

MAX_ROLLBACKS = 20
"""Moments of rollbacks that are kept."""

MAX_GUARDS = 20
"""Guards counted by name; those after that are counted as ``other``, so that labels stay few."""


class Facts(Record):
    """Facts about one run. Moments are the monitor's own clock; ``attempt`` is 0 until one was seen."""

    last_seen: Moment
    progress_at: Moment = Field(
        description="When the newest step or attempt was received, or the run registered."
    )
    last_step_at: Moment | None = None
    attempt: Count = 0
    step: int | None = Field(None, description="Newest step of the newest attempt: goes back at a rollback.")
    step_time: float | None = Field(
        None, description="The trainer's clock at ``step``, Unix s; None until its attempt sends."
    )
    step_seconds: float | None = Field(None, description="Smoothed duration of a step, seconds.")
    loss: float | None = None
    grad_norm: float | None = None
    nonfinite_losses: Count = Field(0, description="Newest losses in a row that are not finite.")
    steps_total: Count = Field(0, description="Steps received, abandoned ones included; never goes back.")
    findings: dict[str, Count] = Field(default_factory=dict, description="By ``guard/severity``.")
    skipped: dict[str, Count] = Field(default_factory=dict, description="Refused steps by reason.")
    rollbacks: dict[str, Count] = Field(default_factory=dict, description="By trigger.")
    checkpoints: dict[str, Count] = Field(default_factory=dict, description="Changes by state reached.")
    steps_lost: Count = 0
    seconds_lost: float = Field(0.0, description="Restores, and steps thrown away at their usual duration.")
    alarm: Alarm | None = None
    returned: Return | None = None
    readings: Readings = Field(default_factory=Readings)
    obeying: str | None = Field(None, description="Id of the rollback command that the trainer has accepted.")
    ended: End | None = None
    last_good: GoodCheckpoint | None = None
    last_valid: ValidCheckpoint | None = None
    attempt_step: int | None = Field(None, description="Where the newest attempt began.")
    prediction: Prediction | None = None
    unanswered: Unanswered | None = None
    losses: LossHistory = Field(default_factory=LossHistory, description="Of the newest attempt.")
    wire: Wire = Field(default_factory=Wire)
    judged: Judgement = Field(default_factory=Judgement)
    returned_at: Moment | None = Field(None, description="When the newest rollback was received.")
    rollback_times: list[Moment] = Field(
        default_factory=list, description="Of the newest rollbacks, by the trainer's clock."
    )
    automatic_orders: list[Moment] = Field(
        default_factory=list, description="Rollbacks of the last hour that no person ordered."
    )
    withdrawals: dict[str, list[str]] = Field(
        default_factory=dict, description="Commands that are being taken back, and the processes told so."
    )
    taken_back: TakenBack | None = Field(None, description="The last rollback that a person cancelled.")

    @classmethod
    def at_registration(cls, now: datetime) -> "Facts":
        return cls(last_seen=now, progress_at=now)

    @property
    def reached(self) -> int | None:
        """The step to show: the newest one, and after the end how many updates the trainer has applied.

        Steps count from 0, so the newest of 600 is 599.
        """
        return self.step if self.ended is None or self.ended.step is None else self.ended.step

    def hear(self, now: datetime) -> None:
        """Something came from the trainer. A clock that was put back is believed: this was no silence."""
        self.last_seen = now

    def note_person(self) -> None:
        """A person has ordered something: they know how things are, and the budget begins anew."""
        self.automatic_orders = []
        self.taken_back = None
        self.judged.suggestion = self.judged.needs_person = None

    def note_taken_back(self, words: str, now: datetime) -> None:
        """A person has taken a rollback back: nobody else orders another until one does, or all is well."""
        self.taken_back = TakenBack(at=now, words=words)

    def note_withdrawals(self, process: str, ids: Sequence[str]) -> bool:
        """These are taken back, and the reply to ``process`` says so; whether one of them is news to it."""
        before = {id_: self.withdrawals.get(id_, []) for id_ in ids}
        fresh = {id_: [*told, process][-MAX_TOLD:] for id_, told in before.items() if process not in told}
        self.withdrawals = {**before, **fresh}
        return bool(fresh)

    def note_order(self, now: datetime) -> None:
        """A rollback was ordered, by a rule or an alert. Those older than an hour count no more."""
        self.automatic_orders = [*orders_within_an_hour(self.automatic_orders, now), now]

    def take(self, batch: Batch, now: datetime) -> None:
        """Fold one new batch in.

        Events up to the one that opens the batch's attempt come before its columns; the others, a
        rollback or the end among them, close what the columns tell.
        """
        self.hear(now)
        self.wire.take(batch, now, is_first_heard=self.attempt == 0)
        self.readings.take(batch, now)
        if batch.attempt > self.attempt:
            self._begin(batch.attempt, now)
        opening = _num_opening(batch)
        self._take_events(batch.events[:opening], batch.attempt, now)
        self._take_columns(batch.attempt, batch.columns, now)
        self._take_events(batch.events[opening:], batch.attempt, now)

    def _begin(self, attempt: int, now: datetime) -> None:
        self.attempt = attempt
        self.progress_at = now
        self.nonfinite_losses = 0
        self.step_time = None
        self.attempt_step = None
        self.losses = LossHistory()
        self.ended = None

    def _take_columns(self, attempt: int, columns: Columns, now: datetime) -> None:
        if not columns.step:
            return
        self.steps_total += len(columns.step)
        if attempt == self.attempt and self.attempt_step is None:
            self.attempt_step = columns.step[0]
        is_first = self.step is None or self.step_time is None
        if attempt == self.attempt and (is_first or columns.step[-1] > (self.step or 0)):
            self._advance(columns, now)

    def _advance(self, columns: Columns, now: datetime) -> None:
        self._measure_step_time(columns)
        self.step, self.step_time = columns.step[-1], columns.time[-1]
        self.last_step_at = self.progress_at = now
        losses = [loss for loss in columns.series.get(LOSS, ()) if loss is not None]
        if losses:
            self.loss = losses[-1]
            self.losses.take(losses)
            row = nonfinite_at_the_end(losses)
            self.nonfinite_losses = self.nonfinite_losses + row if row == len(losses) else row
        norms = [norm for norm in columns.series.get(GRAD_NORM, ()) if norm is not None]
        if norms:
            self.grad_norm = norms[-1]

    def _measure_step_time(self, columns: Columns) -> None:
        if self.step is not None and self.step_time is not None and columns.step[-1] > self.step:
            steps, seconds = columns.step[-1] - self.step, columns.time[-1] - self.step_time
        elif len(columns.step) > 1:
            steps, seconds = columns.step[-1] - columns.step[0], columns.time[-1] - columns.time[0]
        else:
            return
        duration = seconds / steps
        if math.isfinite(duration) and duration > 0:
            before = self.step_seconds
            self.step_seconds = duration if before is None else 0.8 * before + 0.2 * duration

    def _take_events(self, events: Sequence[Event], attempt: int, now: datetime) -> None:
        for event in events:
            self._take_event(event, attempt, now)

    @singledispatchmethod
    def _take_event(self, event: Event, attempt: int, now: datetime) -> None:
        """An event that changes no fact, one of an unknown type among them."""

    @_take_event.register
    def _(self, event: AttemptStarted, attempt: int, now: datetime) -> None:
        if event.attempt < self.attempt:
            return
        if event.attempt > self.attempt:
            self._begin(event.attempt, now)
        self.attempt_step = event.step
        if self.step_time is None:  # else its steps came before this news of its beginning
            self.step = event.step
        if event.reason != "rollback":
            self.returned = None

    @_take_event.register
    def _(self, event: Finding, attempt: int, now: datetime) -> None:
        _add(self.findings, f"{self._label_of(event.guard)}/{event.severity}", 1)
        is_newest = self.alarm is None or (attempt, event.step) >= (self.alarm.attempt, self.alarm.step)
        if event.severity in ALARMING and is_newest:
            words = f"{event.guard} at step {event.step}: {event.message}"
            self.alarm = Alarm(attempt=attempt, step=event.step, words=words)
        if event.reading.get(PREDICTS) == DIVERGENCE:
            self._take_prediction(event, attempt)

    def _take_prediction(self, event: Finding, attempt: int) -> None:
        known = self.prediction
        if known is None or (attempt, event.step) >= (known.attempt, known.step):
            words = f"{event.guard} at step {event.step}: {event.message}"
            self.prediction = Prediction(
                attempt=attempt, step=event.step, severity=event.severity, words=words
            )

    def _label_of(self, guard: str) -> str:
        known = {key.rpartition("/")[0] for key in self.findings}
        return guard if guard in known or len(known) < MAX_GUARDS else OTHER

    @_take_event.register
    def _(self, event: StepSkipped, attempt: int, now: datetime) -> None:
        _add(self.skipped, event.reason, 1)

    @_take_event.register
    def _(self, event: Rollback, attempt: int, now: datetime) -> None:
        _add(self.rollbacks, event.trigger, 1)
        lost = max(event.steps_lost, 0)
        self.steps_lost += lost
        self.seconds_lost += event.seconds + lost * (self.step_seconds or 0.0)
        words = f"rolled back from step {event.from_step} to {event.to_step}: {event.reason}"
        self.returned = Return(to_step=event.to_step, words=words)
        self.returned_at = now
        self.rollback_times = sorted([*self.rollback_times, event.time])[-MAX_ROLLBACKS:]
        if attempt >= self.attempt:
            self.step = event.to_step
            self.step_time = None
            self.progress_at = now
            self.nonfinite_losses = 0
            self.losses = LossHistory()

    @_take_event.register
    def _(self, event: CheckpointChanged, attempt: int, now: datetime) -> None:
        _add(self.checkpoints, event.state, 1)

    @_take_event.register
    def _(self, event: RunEnded, attempt: int, now: datetime) -> None:
        if attempt >= self.attempt:
            self.ended = End(
                attempt=attempt, status=event.status, message=event.message, at=now, step=event.step
            )


def orders_within_an_hour(orders: Sequence[datetime], now: datetime) -> list[datetime]:
    """Those of the last hour; one that lies ahead was noted by a clock that was put back since."""
    return [at for at in orders if now - timedelta(hours=1) < at <= now]


def nonfinite_at_the_end(values: Sequence[float]) -> int:
    """How many of the last values in a row are NaN or infinite."""
    for count, value in enumerate(reversed(values)):
        if math.isfinite(value):
            return count
    return len(values)


def _add(counts: dict[str, int], key: str, by: int) -> None:
    counts[key] = counts.get(key, 0) + by


def _num_opening(batch: Batch) -> int:
    for index in range(len(batch.events), 0, -1):
        event = batch.events[index - 1]
        if isinstance(event, AttemptStarted) and event.attempt == batch.attempt:
            return index
    return 0
