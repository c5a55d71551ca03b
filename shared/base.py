"""The one base of everything that travels: frozen, strict about keys, and exact about NaN and infinity."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
"""A run's or a checkpoint's name: it appears in URLs, file names and labels."""

SeriesName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]{0,199}$")]


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("a time needs a zone; send UTC, for example 2026-01-31T12:00:00Z")
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{moment.isoformat()} is out of range once it is in UTC") from error


Moment = Annotated[datetime, AfterValidator(_in_utc)]
"""A time with a zone, kept in UTC."""


def utc_now() -> datetime:
    """The present moment, aware and in UTC."""
    return datetime.now(UTC)


class Message(BaseModel):
    """Base of all messages.

    JSON has no NaN, so a number that is not finite travels as ``"NaN"``, ``"Infinity"`` or ``"-Infinity"``.
    Unknown keys are refused: a misspelt field must not vanish in silence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")
