"""The series of one run in ``/metrics``: their names, types and labels, and where each value comes from."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from monitor_service.health import RunStatus
from monitor_service.readings import KINDS, TENSORS, group_values, loss_values, norm_values
from monitor_service.run_numbers import (
    Seen,
    at_least,
    clock_offset,
    dropped,
    fact,
    good_step,
    interval,
    latest,
    missing,
    moment,
    newest,
    reached,
    reading,
    results,
    rollbacks,
    spool_bytes,
)
from shared.commands import CommandKind
from shared.events import Severity

GUARDS = ("nonfinite", "spike", "drift", "invariants", "culprit")
"""Guards whose counters stand at 0 before they see anything: an alert on the first finding needs that."""

SEVERITIES = (Severity.WARNING, Severity.ERROR, Severity.CRITICAL)
SKIPS = ("nonfinite_grad", "nonfinite_loss", "spike", "overflow")
TRIGGERS = ("guard", "rule", "alert", "operator")
OUTCOMES = ("applied", "refused", "failed", "expired", "cancelled")


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
    Family("run_attempt", "gauge", "1 at first, 1 more at each resume or rollback.", fact("attempt")),
    Family("steps_total", "counter", "Steps received; never goes back.", fact("steps_total")),
    Family("step", "gauge", "Step of the newest attempt; goes back at a rollback.", reached),
    Family(
        "last_seen_timestamp_seconds",
        "gauge",
        "When anything was heard last, Unix time.",
        fact("last_seen"),
        tell=moment,
    ),
    Family(
        "last_step_timestamp_seconds",
        "gauge",
        "When the newest step was received, Unix time; 0 before.",
        fact("last_step_at"),
        tell=moment,
    ),
    Family("step_duration_ema_seconds", "gauge", "Smoothed duration of a step.", fact("step_seconds")),
    Family(
        "data_wait_ratio",
        "gauge",
        "Share of the newest steps' time that went into waiting for data.",
        reading("data_wait_ratio"),
    ),
    Family(
        "samples_total",
        "counter",
        "Training samples, if the trainer sends a series samples.",
        reading("samples_total"),
    ),
    Family(
        "loss",
        "gauge",
        "Newest loss, whole and in parts (8 at most); may be NaN.",
        newest,
        ("component",),
        loss_values,
    ),
    Family("loss_ema", "gauge", "Loss smoothed over 50 steps, finite values only.", reading("loss_ema")),
    Family(
        "grad_norm",
        "gauge",
        "Newest global gradient norm, before and after the clip; may be NaN.",
        newest,
        ("stage",),
        norm_values,
    ),
    Family(
        "learning_rate",
        "gauge",
        "Newest learning rate.",
        lambda seen: group_values(newest(seen)),
        ("group",),
    ),
    Family("loss_scale", "gauge", "What the loss was multiplied by, under fp16.", latest("loss_scale")),
    Family(
        "param_norm",
        "gauge",
        "Norm of all parameters, if the trainer sends a series param_norm.",
        latest("param_norm"),
    ),
    Family(
        "nonfinite_total",
        "counter",
        "Values that were NaN or infinite, by where; of param, optimizer and ema: tensors.",
        reading("nonfinite"),
        ("tensor", "kind"),
        at_least(_NONFINITE),
    ),
    Family(
        "last_nonfinite_timestamp_seconds",
        "gauge",
        "When the last such value was received, Unix time; 0 when never.",
        reading("nonfinite_at"),
        ("tensor",),
        at_least(TENSORS),
    ),
    Family(
        "skipped_steps_total",
        "counter",
        "Steps refused on the device.",
        fact("skipped"),
        ("reason",),
        at_least(SKIPS),
    ),
    Family(
        "findings_total",
        "counter",
        "Findings of guards.",
        fact("findings"),
        ("guard", "severity"),
        at_least(_FINDINGS),
    ),
    Family(
        "checkpoints_total",
        "counter",
        "Checkpoints: sealed (unverified), then good (valid), or bad (invalid).",
        fact("checkpoints"),
        ("result",),
        results,
    ),
    Family(
        "checkpoint_last_valid_step", "gauge", "Step of the newest good checkpoint, -1 if none.", good_step
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
        interval,
    ),
    Family("checkpoint_bytes", "gauge", "Size of the newest checkpoint.", reading("checkpoint_bytes")),
    Family(
        "checkpoint_save_seconds",
        "gauge",
        "Time to write and prove the newest checkpoint.",
        reading("checkpoint_save_seconds"),
    ),
    Family(
        "rollbacks_total",
        "counter",
        "Rollbacks, by who asked and what came of it.",
        rollbacks,
        ("trigger", "outcome"),
        at_least(_ROLLBACKS),
    ),
    Family("rollback_lost_steps_total", "counter", "Steps undone by rollbacks.", fact("steps_lost")),
    Family("rollback_lost_seconds_total", "counter", "Time lost by rollbacks.", fact("seconds_lost")),
    Family(
        "command_pending_oldest_timestamp_seconds",
        "gauge",
        "When the oldest command without an answer was ordered, Unix time; 0 when none.",
        lambda seen: seen.pending,
        ("kind",),
        at_least(CommandKind),
    ),
    Family(
        "client_dropped_total",
        "counter",
        "What the trainer's outbox had to drop.",
        lambda seen: seen.wire.get("lost", {}),
        ("what",),
        dropped,
    ),
    Family(
        "client_waiting_batches",
        "gauge",
        "Batches that wait with the trainer.",
        lambda seen: seen.wire.get("waiting", 0),
    ),
    Family("client_spool_bytes", "gauge", "What waits on the trainer's disk.", spool_bytes),
    Family("client_missing_batches", "gauge", "Batch numbers that were passed over, so far.", missing),
    Family(
        "client_clock_offset_seconds",
        "gauge",
        "Trainer's clock minus monitor's at the newest step; the way takes up to a flush interval.",
        clock_offset,
    ),
)
"""In the order in which they are written."""
