"""What happened, in words: each event, state and status becomes a sign (icon and label) and a sentence."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import singledispatch
from typing import Literal

from shared.commands import CommandKind, CommandState
from shared.events import (
    AttemptStarted,
    Change,
    CheckpointState,
    Event,
    Finding,
    Incident,
    OpaqueEvent,
    Rollback,
    RunEnded,
    Severity,
    StepSkipped,
)

Tone = Literal["ok", "note", "warn", "bad", "back", "idle"]


DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Sign:
    """An icon of ``_icons.html``, a colour of ``base.css``, and the label that says the same in a word."""

    icon: str
    tone: Tone
    label: str


STATUS: dict[str, Sign] = {
    "healthy": Sign("dot", "ok", "Healthy"),
    "suspect": Sign("triangle", "warn", "Suspect"),
    "recovering": Sign("back", "back", "Recovering"),
    "diverged": Sign("diamond", "bad", "Diverged"),
    "stalled": Sign("pause", "warn", "Stalled"),
    "lost": Sign("silent", "bad", "Lost"),
    "finished": Sign("check", "ok", "Finished"),
    "stopped": Sign("square", "idle", "Stopped"),
    "failed": Sign("cross", "bad", "Failed"),
}

CHECKPOINT: dict[CheckpointState, Sign] = {
    CheckpointState.WRITING: Sign("ring", "idle", "Writing"),
    CheckpointState.SEALED: Sign("box", "note", "Sealed"),
    CheckpointState.GOOD: Sign("box-good", "ok", "Good"),
    CheckpointState.BAD: Sign("box-bad", "bad", "Bad"),
    CheckpointState.DELETED: Sign("dot", "idle", "Deleted"),
}

SEVERITY: dict[Severity, Sign] = {
    Severity.INFO: Sign("ring", "note", "Note"),
    Severity.WARNING: Sign("triangle", "warn", "Warning"),
    Severity.ERROR: Sign("diamond", "bad", "Error"),
    Severity.CRITICAL: Sign("critical", "bad", "Critical"),
}

COMMAND: dict[CommandKind, str] = {
    CommandKind.ROLL_BACK: "Roll back",
    CommandKind.STOP: "Stop",
    CommandKind.SAVE_CHECKPOINT: "Save a checkpoint",
}

COMMAND_STATE: dict[CommandState, Sign] = {
    CommandState.PENDING: Sign("ring", "note", "Pending"),
    CommandState.DELIVERED: Sign("ring", "note", "Delivered"),
    CommandState.ACCEPTED: Sign("back", "back", "Accepted"),
    CommandState.SUCCEEDED: Sign("check", "ok", "Succeeded"),
    CommandState.FAILED: Sign("cross", "bad", "Failed"),
    CommandState.REFUSED: Sign("refused", "warn", "Refused"),
    CommandState.EXPIRED: Sign("silent", "warn", "Expired"),
    CommandState.CANCELLING: Sign("ring", "note", "Being cancelled"),
    CommandState.CANCELLED: Sign("refused", "idle", "Cancelled"),
}

SKIPPED = Sign("refused", "bad", "Skipped step")
ROLLBACK = Sign("back", "back", "Rollback")
ATTEMPT = Sign("start", "idle", "Attempt")
START = Sign("start", "idle", "Start")
RESUME = Sign("start", "idle", "Resume")
CHANGE = Sign("diamond", "note", "Change")
HEALED = Sign("check", "ok", "Healed")
UNKNOWN = Sign("ring", "idle", "Other event")

OUTCOME = {
    "open": Sign("triangle", "warn", "Open"),
    "healed": HEALED,
    "stopped": Sign("critical", "bad", "Ended the run"),
}

_ENDINGS = {"finished": STATUS["finished"], "stopped": STATUS["stopped"], "failed": STATUS["failed"]}
_CHANGED = {
    "lr_factor": "The factor on the learning rate goes",
    "clip_factor": "The factor on the clipping norm goes",
    "loss_scale": "The loss scale goes",
    "quarantine": "Sample",
    "data_window": "Batches",
}
_WHY_REFUSED = {
    "nonfinite_grad": "its gradient is not finite",
    "nonfinite_loss": "its loss is not finite",
    "spike": "it lies far above what its batch should give",
    "overflow": "half precision overflowed, and the loss scale went down",
}


def number(value: float | None) -> str:
    """Four digits that count; NaN and infinity as such; a dash where there is none."""
    if value is None:
        return DASH
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    return f"{value:.4g}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e").replace("-", MINUS)


def seconds(value: float) -> str:
    """A duration in the unit that suits it: ``80 ms``, ``2.5 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if not math.isfinite(value):
        return f"{number(value)} s"
    if value < 1:
        return f"{value * 1000:.0f} ms" if value else "0 s"
    if value < 60:
        return f"{value:.1f}".removesuffix(".0") + " s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(num_bytes: int) -> str:
    """Bytes in the unit that suits them, powers of 1024."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"


def steps(count: int) -> str:
    """``1 step``, ``12,000 steps``."""
    return f"{count:,} step" + ("" if count == 1 else "s")


_BATCH = re.compile(r"; the batch held [^;]*$")
"""How guards end a message: with the samples of the batch, which a page lists elsewhere."""

MOST_SAMPLES = 4


def brief(message: str) -> str:
    """A guard's message without the list of the samples in the batch."""
    return _BATCH.sub("", message)


def samples(names: Sequence[str]) -> str:
    """``, samples a, b``, the first few by name; nothing where there are none."""
    if not names:
        return ""
    more = f" and {len(names) - MOST_SAMPLES} more" if len(names) > MOST_SAMPLES else ""
    return f", samples {', '.join(names[:MOST_SAMPLES])}{more}"


def iso(moment: datetime) -> str:
    """For the ``datetime`` attribute, from which the page's script makes local time."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clock(moment: datetime) -> str:
    """For a reader without scripts."""
    return f"{moment.astimezone(UTC):%d %b %H:%M:%S} UTC"


def grouped(value: int | None) -> str:
    """``12,000``, or a dash."""
    return DASH if value is None else f"{value:,}"


FILTERS = {
    "number": number,
    "seconds": seconds,
    "size": size,
    "steps": steps,
    "brief": brief,
    "iso": iso,
    "clock": clock,
    "grouped": grouped,
}
"""What the templates may call."""


@dataclass(frozen=True)
class Telling:
    """One event for a reader: its sign, what happened in a sentence, and the numbers behind it."""

    sign: Sign
    text: str
    numbers: str = ""


@singledispatch
def tell(event: Event) -> Telling | None:
    """The event in words; ``None`` for those that a table of their own shows (checkpoints, commands)."""
    return None


@tell.register
def _(event: Finding) -> Telling:
    reading = ", ".join(
        f"{name} {number(value) if isinstance(value, float) else value}"
        for name, value in event.reading.items()
    )
    return Telling(SEVERITY[event.severity], f"{event.guard}: {brief(event.message)}", reading)


@tell.register
def _(event: StepSkipped) -> Telling:
    numbers = f"loss {number(event.loss)}, gradient norm {number(event.grad_norm)}"
    text = f"Update refused: {_WHY_REFUSED[event.reason]}. No weight changed."
    return Telling(SKIPPED, text, numbers + samples(event.sample_ids))


@tell.register
def _(event: Rollback) -> Telling:
    by = "a command" if event.trigger == "command" else "a guard"
    source = f"checkpoint {event.checkpoint}" if event.checkpoint else f"a {event.source}"
    text = (
        f"From step {event.from_step:,} back to {event.to_step:,} by {by}, from {source}: {event.reason}. "
        f"Cost {steps(event.steps_lost)} and {seconds(event.seconds)}."
    )
    return Telling(ROLLBACK, text)


@tell.register
def _(event: Change) -> Telling:
    what = _CHANGED[event.what]
    if event.what in ("quarantine", "data_window"):
        text = f"{what} {event.value} {'taken back' if event.is_undo else 'set aside'}: {event.reason}."
    else:
        value, previous = (
            number(one) if isinstance(one, float) else one for one in (event.value, event.previous)
        )
        text = f"{what} {'back ' if event.is_undo else ''}from {previous} to {value}: {event.reason}."
    return Telling(CHANGE, text)


@tell.register
def _(event: Incident) -> Telling:
    where = f" in {event.module}" if event.module else ""
    text = f"Incident {event.incident} ({event.kind}{where}): {brief(event.message)} {event.action}".rstrip()
    cost = f"cost {steps(event.steps_lost)} and {seconds(event.seconds_lost)}"
    return Telling(OUTCOME[event.outcome], text, cost + samples(event.sample_ids))


@tell.register
def _(event: AttemptStarted) -> Telling | None:
    if event.reason == "rollback":
        return None  # the rollback itself is told
    source = f" from checkpoint {event.checkpoint}" if event.checkpoint else ""
    sign, words = (START, "starts") if event.reason == "start" else (RESUME, "resumes")
    return Telling(sign, f"The run {words} at step {event.step:,}{source}.")


@tell.register
def _(event: RunEnded) -> Telling:
    sign = _ENDINGS[event.status]
    why = f": {event.message}" if event.message else ""
    return Telling(sign, f"The run {event.status} at step {event.step:,}{why}.")


@tell.register
def _(event: OpaqueEvent) -> Telling:
    return Telling(UNKNOWN, f"{event.type}: this version of the monitor does not know what it means.")
