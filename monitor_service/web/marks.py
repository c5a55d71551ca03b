"""Marks on the charts: what stands at which step, with which sign and which words."""

from dataclasses import asdict, dataclass
from functools import singledispatch
from typing import Any, Literal

from monitor_service.views import AttemptView, CheckpointView
from monitor_service.web import words
from shared.events import Event, Finding, Rollback, StepSkipped

Kind = Literal["finding", "skipped", "rollback", "attempt", "checkpoint"]


@dataclass(frozen=True)
class Mark:
    """One sign at a step; a rollback also has the step that it leads to."""

    kind: Kind
    step: int
    attempt: int
    icon: str
    tone: words.Tone
    label: str
    text: str
    to_step: int | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def _mark(
    kind: Kind, sign: words.Sign, step: int, attempt: int, text: str, to_step: int | None = None
) -> Mark:
    return Mark(kind, step, attempt, sign.icon, sign.tone, sign.label, text, to_step)


@singledispatch
def mark_event(event: Event, attempt: int) -> Mark | None:
    """The mark of an event of ``attempt``; ``None`` if it has none."""
    return None


def _told(kind: Kind, event: Event, attempt: int, to_step: int | None = None) -> Mark | None:
    telling = words.tell(event)
    if telling is None:
        return None
    return _mark(kind, telling.sign, event.step, attempt, telling.text, to_step)


@mark_event.register
def _(event: Finding, attempt: int) -> Mark | None:
    return _told("finding", event, attempt)


@mark_event.register
def _(event: StepSkipped, attempt: int) -> Mark | None:
    return _told("skipped", event, attempt)


@mark_event.register
def _(event: Rollback, attempt: int) -> Mark | None:
    return _told("rollback", event, attempt, event.to_step)


def mark_attempt(attempt: AttemptView) -> Mark:
    """Where a run was taken up again."""
    text = f"Attempt {attempt.attempt} begins here."
    return _mark("attempt", words.ATTEMPT, attempt.start_step, attempt.attempt, text)


def mark_checkpoint(checkpoint: CheckpointView) -> Mark:
    """A checkpoint at the step that it holds."""
    sign = words.CHECKPOINT[checkpoint.state]
    sign = words.Sign(sign.icon, sign.tone, f"{sign.label} checkpoint")
    why = f", fails {checkpoint.failed_check}" if checkpoint.failed_check else ""
    text = f"Checkpoint {checkpoint.checkpoint}: {checkpoint.state}{why}."
    return _mark("checkpoint", sign, checkpoint.step, checkpoint.attempt, text)
