"""The series of one run in ``/metrics``: their names, types and labels, and where each value comes from.

They are read from the facts as these stand in the database, as JSON: no model is built for 500 runs at each
scrape. Numbers that JSON can't say stand there as texts.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from monitor_service.health import RunStatus
from monitor_service.readings import KINDS, TENSORS, group_values, loss_values, norm_values
from shared.commands import CommandKind
from shared.events import Severity

GUARDS = ("nonfinite", "spike", "drift", "invariants", "culprit")
"""Guards whose counters stand at 0 before they see anything: an alert on the first finding needs that."""

SEVERITIES = (Severity.WARNING, Severity.ERROR, Severity.CRITICAL)
SKIPS = ("nonfinite_grad", "nonfinite_loss", "spike", "overflow")
TRIGGERS = ("guard", "rule", "alert", "operator")
OUTCOMES = ("applied", "refused", "failed", "expired", "cancelled")
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


def _as_it_is(found: Any) -> Any:
    return found


@dataclass(frozen=True)
class Family:
    """One metric. What ``read`` finds and ``tell`` turns into numbers is written anew only when it changed.

    Told is a ``Number``, or a ``dict`` of them by labels (``Values``); what is ``None`` has no series yet.
    """

    name: str
    kind: Literal["gauge", "counter"]
    what: str
    read: Callable[[Seen], Any]
    labels: tuple[str, ...] = ()
    tell: Callable[[Any], Any] = _as_it_is


def _moment(text: str | None) -> float:
    """Unix seconds of a moment as it stands among the facts, 0 when there is none."""
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def _fact(name: str) -> Callable[[Seen], Any]:
    return lambda seen: seen.facts.get(name)


def _reading(name: str) -> Callable[[Seen], Any]:
    return lambda seen: seen.readings.get(name)


def _latest(series: str) -> Callable[[Seen], Any]:
    return lambda seen: seen.readings.get("latest", {}).get(series)


def _newest(seen: Seen) -> Any:
    return seen.readings.get("latest", {})


def _at_least(known: Iterable[str]) -> Callable[[Mapping[str, Number] | None], Values]:
    """Counts with a 0 for what is known but has not happened."""
    zeros = {str(one): 0 for one in known}  # not enums, whose hashes are slow
    return lambda counts: zeros | dict(counts or {})


def _reached(seen: Seen) -> Any:
    """After the end: how many updates were applied, as the page says it, too."""
    ended = seen.facts.get("ended")
    told = ended.get("step") if ended is not None else None
    return seen.facts.get("step") if told is None else told


def _rollbacks(seen: Seen) -> Values:
    by_guard = seen.facts.get("rollbacks", {}).get("guard", 0)
    return {**seen.rollbacks, "guard/applied": by_guard}


def _results(states: Mapping[str, int] | None) -> Values:
    return {result: (states or {}).get(state, 0) for state, result in RESULTS.items()}


def _interval(seen: Seen) -> Number | None:
    steps, seconds = seen.row.checkpoint_interval_steps, seen.facts.get("step_seconds")
    return steps * seconds if steps and isinstance(seconds, float | int) else None


def _good_step(seen: Seen) -> Number:
    good = seen.facts.get("last_good")
    return int(good["step"]) if good else -1


def _missing(seen: Seen) -> Number:
    return sum([int(one["last_seq"] - one["received"]) for one in seen.sessions])


def _spool_bytes(seen: Seen) -> Number:
    spooled: Number = seen.sessions[-1].get("outbox", {}).get("spool_bytes", 0) if seen.sessions else 0
    return spooled


def _dropped(lost: Mapping[str, int]) -> Values:
    return {name: lost.get(key, 0) for key, name in DROPPED.items()}


def _clock_offset(seen: Seen) -> Number | None:
    """Of the newest step: how far the trainer's clock was ahead of ours when we received it."""
    at, ours = seen.facts.get("step_time"), seen.facts.get("last_step_at")
    return at - _moment(ours) if isinstance(at, float | int) and ours else None


_STATES = {status.value: {one.value: int(one is status) for one in RunStatus} for status in RunStatus}
_FINDINGS = tuple(f"{guard}/{severity}" for guard in GUARDS for severity in SEVERITIES)
_NONFINITE = tuple(f"{tensor}/{kind}" for tensor in TENSORS for kind in KINDS)
_ROLLBACKS = tuple(
    f"{trigger}/{outcome}"
    for trigger in TRIGGERS
    for outcome in (OUTCOMES[:1] if trigger == "guard" else OUTCOMES)
)

FAMILIES = (
    Family(
        "run_info",
        "gauge",
        "Text about the run.",
        lambda seen: seen.row.total_steps,
        ("total_steps",),
        lambda steps: {str(steps or ""): 1},
    ),
    Family(
        "run_state",
        "gauge",
        "1 for the status that the run has.",
        lambda seen: seen.row.status,
        ("state",),
        _STATES.__getitem__,
    ),
    Family(
        "run_start_timestamp_seconds",
        "gauge",
        "When the run started, Unix time.",
        lambda seen: seen.row.started_at,
        tell=datetime.timestamp,
    ),
    Family("run_attempt", "gauge", "1 at first, 1 more at each resume or rollback.", _fact("attempt")),
    Family("steps_total", "counter", "Steps received; never goes back.", _fact("steps_total")),
    Family("step", "gauge", "Step of the newest attempt; goes back at a rollback.", _reached),
    Family(
        "last_seen_timestamp_seconds",
        "gauge",
        "When anything was heard last, Unix time.",
        _fact("last_seen"),
        tell=_moment,
    ),
    Family(
        "last_step_timestamp_seconds",
        "gauge",
        "When the newest step was received, Unix time; 0 before.",
        _fact("last_step_at"),
        tell=_moment,
    ),
    Family("step_duration_ema_seconds", "gauge", "Smoothed duration of a step.", _fact("step_seconds")),
    Family(
        "data_wait_ratio",
        "gauge",
        "Share of the newest steps' time that went into waiting for data.",
        _reading("data_wait_ratio"),
    ),
    Family(
        "samples_total",
        "counter",
        "Training samples, if the trainer sends a series samples.",
        _reading("samples_total"),
    ),
    Family(
        "loss",
        "gauge",
        "Newest loss, whole and in parts (8 at most); may be NaN.",
        _newest,
        ("component",),
        loss_values,
    ),
    Family("loss_ema", "gauge", "Loss smoothed over 50 steps, finite values only.", _reading("loss_ema")),
    Family(
        "grad_norm",
        "gauge",
        "Newest global gradient norm, before and after the clip; may be NaN.",
        _newest,
        ("stage",),
        norm_values,
    ),
    Family(
        "learning_rate",
        "gauge",
        "Newest learning rate.",
        lambda seen: group_values(_newest(seen)),
        ("group",),
    ),
    Family("loss_scale", "gauge", "What the loss was multiplied by, under fp16.", _latest("loss_scale")),
    Family(
        "param_norm",
        "gauge",
        "Norm of all parameters, if the trainer sends a series param_norm.",
        _latest("param_norm"),
    ),
    Family(
        "nonfinite_total",
        "counter",
        "Values that were NaN or infinite, by where; of param, optimizer and ema: tensors.",
        _reading("nonfinite"),
        ("tensor", "kind"),
        _at_least(_NONFINITE),
    ),
    Family(
        "last_nonfinite_timestamp_seconds",
        "gauge",
        "When the last such value was received, Unix time; 0 when never.",
        _reading("nonfinite_at"),
        ("tensor",),
        _at_least(TENSORS),
    ),
    Family(
        "skipped_steps_total",
        "counter",
        "Steps refused on the device.",
        _fact("skipped"),
        ("reason",),
        _at_least(SKIPS),
    ),
    Family(
        "findings_total",
        "counter",
        "Findings of guards.",
        _fact("findings"),
        ("guard", "severity"),
        _at_least(_FINDINGS),
    ),
    Family(
        "checkpoints_total",
        "counter",
        "Checkpoints: sealed (unverified), then good (valid), or bad (invalid).",
        _fact("checkpoints"),
        ("result",),
        _results,
    ),
    Family(
        "checkpoint_last_valid_step", "gauge", "Step of the newest good checkpoint, -1 if none.", _good_step
    ),
    Family(
        "checkpoint_last_valid_timestamp_seconds",
        "gauge",
        "When a checkpoint was last found good, Unix time; the run's start before.",
        lambda seen: seen.readings.get("last_good_at") or seen.row.started_at.timestamp(),
    ),
    Family(
        "checkpoint_interval_seconds",
        "gauge",
        "The trainer's interval in steps, at the smoothed duration of a step.",
        _interval,
    ),
    Family("checkpoint_bytes", "gauge", "Size of the newest checkpoint.", _reading("checkpoint_bytes")),
    Family(
        "checkpoint_save_seconds",
        "gauge",
        "Time to write and prove the newest checkpoint.",
        _reading("checkpoint_save_seconds"),
    ),
    Family(
        "rollbacks_total",
        "counter",
        "Rollbacks, by who asked and what came of it.",
        _rollbacks,
        ("trigger", "outcome"),
        _at_least(_ROLLBACKS),
    ),
    Family("rollback_lost_steps_total", "counter", "Steps undone by rollbacks.", _fact("steps_lost")),
    Family("rollback_lost_seconds_total", "counter", "Time lost by rollbacks.", _fact("seconds_lost")),
    Family(
        "command_pending_oldest_timestamp_seconds",
        "gauge",
        "When the oldest command without an answer was ordered, Unix time; 0 when none.",
        lambda seen: seen.pending,
        ("kind",),
        _at_least(CommandKind),
    ),
    Family(
        "client_dropped_total",
        "counter",
        "What the trainer's outbox had to drop.",
        lambda seen: seen.wire.get("lost", {}),
        ("what",),
        _dropped,
    ),
    Family(
        "client_waiting_batches",
        "gauge",
        "Batches that wait with the trainer.",
        lambda seen: seen.wire.get("waiting", 0),
    ),
    Family("client_spool_bytes", "gauge", "What waits on the trainer's disk.", _spool_bytes),
    Family("client_missing_batches", "gauge", "Batch numbers that were passed over, so far.", _missing),
    Family(
        "client_clock_offset_seconds",
        "gauge",
        "Trainer's clock minus monitor's at the newest step; the way takes up to a flush interval.",
        _clock_offset,
    ),
)
"""In the order in which they are written."""
