"""Refuses whole numbers that no database column holds; the messages themselves know no upper bound."""

from collections.abc import Iterator

from monitor_service.errors import InvalidMessage, Violation
from monitor_service.tables import LARGEST_INTEGER
from shared.commands import CommandRequest
from shared.exchange import Batch, RunSpec


def check(message: Batch | RunSpec | CommandRequest) -> None:
    """Let a message pass whose numbers fit into 63 bits.

    Raises:
        InvalidMessage: with the fields that are too large.
    """
    too_large = [
        Violation(field, str(value)[:80], f"it may be {LARGEST_INTEGER} at most")
        for field, value in _numbers(message)
        if value is not None and abs(value) > LARGEST_INTEGER
    ]
    if too_large:
        raise InvalidMessage(too_large)


def _numbers(message: Batch | RunSpec | CommandRequest) -> Iterator[tuple[str, int | None]]:
    if isinstance(message, RunSpec):
        yield "total_steps", message.total_steps
        yield "checkpoint_interval_steps", message.checkpoint_interval_steps
    elif isinstance(message, CommandRequest):
        yield "to_step", message.to_step
    else:
        yield "seq", message.seq
        yield "attempt", message.attempt
        if message.columns.step:  # they rise, so the last is the largest
            yield f"columns.step.{len(message.columns.step) - 1}", message.columns.step[-1]
        for index, event in enumerate(message.events):
            for name in type(event).model_fields:
                value = getattr(event, name)
                if isinstance(value, int):
                    yield f"events.{index}.{name}", value
