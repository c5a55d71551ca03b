"""What a trainer reports: each event names its step and its moment."""

import base64
import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, FailFast, Field, Strict, Tag

from shared.base import Message, Moment, Name, utc_now

_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _word_as_number(value: Any) -> Any:
    return _WORDS.get(value, value) if isinstance(value, str) else value


Reading = Annotated[Annotated[float, Strict()] | str, BeforeValidator(_word_as_number)]
"""A number or a text. Only the three words of the wire are numbers: a sample called "12_3" stays a text."""


class Severity(StrEnum):
    """How bad a finding is. ``warning`` and above count as alarms."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


class Event(Message):
    """One thing that happened. ``step`` counts applied optimizer updates from 0 on."""

    step: int = Field(ge=0)
    time: Moment = Field(default_factory=utc_now)


class AttemptStarted(Event):
    """A stretch of a run begins: at the start, after a resume, after a rollback.

    ``step`` is where it begins. Steps of older attempts from there on are abandoned.
    """

    type: Literal["attempt_started"] = "attempt_started"
    attempt: int = Field(ge=1)
    reason: Literal["start", "resume", "rollback"]
    checkpoint: Name | None = None


class Finding(Event):
    """What a guard saw. ``reading`` holds the numbers that led to it, NaN included."""

    type: Literal["finding"] = "finding"
    guard: str
    severity: Severity
    message: str
    reading: dict[str, Reading] = Field(default_factory=dict)


class StepSkipped(Event):
    """An update was refused on the device: weights, moments and ``step`` stayed as they were.

    So the refused numbers travel here and not in the columns, which hold applied updates only; ``step`` is
    the number that the update would have had, and that the next applied one gets.
    """

    type: Literal["step_skipped"] = "step_skipped"
    reason: Literal["nonfinite_grad", "nonfinite_loss", "spike", "overflow"]
    loss: float
    grad_norm: float
    sample_ids: Annotated[tuple[str, ...], FailFast()] = Field((), max_length=10_000)


class Rollback(Event):
    """The run went back. ``step`` equals ``from_step``: where it was when it turned."""

    type: Literal["rollback"] = "rollback"
    from_step: int = Field(ge=0)
    to_step: int = Field(ge=0)
    source: Literal["snapshot", "checkpoint"]
    checkpoint: Name | None = None
    reason: str
    trigger: Literal["guard", "command"]
    command: str | None = None
    seconds: float = Field(ge=0, description="Duration of the restore itself, seconds.")

    @property
    def steps_lost(self) -> int:
        """Applied updates thrown away."""
        return self.from_step - self.to_step


class Change(Event):
    """Recovery set something aside or turned something down; its undo is a change of its own.

    ``value`` and ``previous`` are factors for ``lr_factor`` and ``clip_factor``, the scale for
    ``loss_scale``, a sample's id for ``quarantine``, and ``first..last`` batch numbers for ``data_window``.
    """

    type: Literal["change"] = "change"
    what: Literal["lr_factor", "clip_factor", "loss_scale", "quarantine", "data_window"]
    value: Reading
    previous: Reading
    reason: str
    is_undo: bool = False
    incident: Name | None = None


class Incident(Event):
    """One fault from onset to outcome. Told again with the same ``incident`` when more is known: the last
    telling counts.

    ``step`` is where it was detected, ``onset_step`` where it is thought to have begun; the lost steps and
    seconds are what the run paid for it. ``evidence`` names the folder in the run's own folder that
    ``python -m trainer replay`` reproduces.
    """

    type: Literal["incident"] = "incident"
    incident: Name
    onset_step: int = Field(ge=0)
    guard: str
    kind: Literal["transient", "data", "weights", "state", "hang", "process", "unknown"]
    message: str
    module: str | None = None
    sample_ids: Annotated[tuple[str, ...], FailFast()] = Field((), max_length=10_000)
    action: str = ""
    steps_lost: int = Field(0, ge=0)
    seconds_lost: float = Field(0.0, ge=0)
    outcome: Literal["open", "healed", "stopped"] = "open"
    evidence: str | None = None
    reading: dict[str, Reading] = Field(default_factory=dict)


class CheckpointState(StrEnum):
    """``writing -> sealed -> good``, or ``bad`` with the check that failed; ``deleted`` by retention."""

    WRITING = "writing"
    SEALED = "sealed"
    GOOD = "good"
    BAD = "bad"
    DELETED = "deleted"


class CheckpointChanged(Event):
    """A checkpoint reached a state. ``step`` is the step that the checkpoint holds."""

    type: Literal["checkpoint"] = "checkpoint"
    checkpoint: Name
    state: CheckpointState
    size_bytes: int | None = None
    probe_loss: float | None = None
    seconds: float | None = Field(None, description="Time to write and prove it, seconds.")
    failed_check: str | None = None


class CommandUpdate(Event):
    """How far a command from the monitor has come."""

    type: Literal["command"] = "command"
    command: str
    state: Literal["accepted", "succeeded", "failed", "refused", "cancelled"]
    message: str = ""


MAX_PICTURE_BYTES = 64 * 1024
_PNG = b"\x89PNG\r\n\x1a\n"


def _is_small_png(text: str) -> str:
    try:
        content = base64.b64decode(text.encode("ascii"), validate=True)
    except ValueError as error:
        raise ValueError("a picture travels as base64") from error
    if content and not content.startswith(_PNG):
        raise ValueError("a picture is a PNG; its first eight bytes say so")
    if len(content) > MAX_PICTURE_BYTES:
        raise ValueError(f"a picture has {MAX_PICTURE_BYTES} bytes at most; send a smaller one")
    return text


class Picture(Event):
    """A small PNG for people: maps drawn beside the truth, or the sample that an incident names.

    Square tiles lie side by side, and ``tiles`` says what each shows. The monitor keeps the picture apart
    from the event, which it gives back with an empty ``png``.
    """

    type: Literal["picture"] = "picture"
    picture: Name
    kind: Literal["drawn", "sample"]
    title: str = Field(max_length=200, description="What is shown, for example the sample's id.")
    tiles: tuple[Annotated[str, Field(max_length=50)], ...] = Field(min_length=1, max_length=8)
    png: Annotated[str, Field(max_length=-(-MAX_PICTURE_BYTES // 3) * 4), AfterValidator(_is_small_png)] = (
        Field(description="Base64; 64 KiB at most once decoded.")
    )
    incident: Name | None = None
    reading: dict[str, Reading] = Field(default_factory=dict)


class RunEnded(Event):
    """The last event of a session."""

    type: Literal["run_ended"] = "run_ended"
    status: Literal["finished", "stopped", "failed"]
    message: str = ""


class OpaqueEvent(Event):
    """An event of a type this version does not know: kept as it came, never lost."""

    model_config = ConfigDict(extra="allow")
    type: str


KNOWN_EVENTS = (
    "attempt_started",
    "finding",
    "step_skipped",
    "rollback",
    "change",
    "incident",
    "checkpoint",
    "command",
    "picture",
    "run_ended",
)


def _tag(value: Any) -> str:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return kind if kind in KNOWN_EVENTS else "opaque"


AnyEvent = Annotated[
    Annotated[AttemptStarted, Tag("attempt_started")]
    | Annotated[Finding, Tag("finding")]
    | Annotated[StepSkipped, Tag("step_skipped")]
    | Annotated[Rollback, Tag("rollback")]
    | Annotated[Change, Tag("change")]
    | Annotated[Incident, Tag("incident")]
    | Annotated[CheckpointChanged, Tag("checkpoint")]
    | Annotated[CommandUpdate, Tag("command")]
    | Annotated[Picture, Tag("picture")]
    | Annotated[RunEnded, Tag("run_ended")]
    | Annotated[OpaqueEvent, Tag("opaque")],
    Discriminator(_tag),
]
