"""Checkpoints as the monitor knows them: of each the latest state, in whatever order the news came."""

from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from monitor_service import tables
from monitor_service.errors import Conflict
from monitor_service.landmarks import GoodCheckpoint, ValidCheckpoint
from shared.base import Message
from shared.events import CheckpointChanged, CheckpointState

_ORDER = list(CheckpointState)
"""The life of a checkpoint; decides between two changes of the same moment."""


class Details(Message):
    """What was said about a checkpoint; JSON, because a probe loss may be NaN."""

    size_bytes: int | None = None
    probe_loss: float | None = None
    seconds: float | None = None
    failed_check: str | None = None


def note(connection: Connection, run_id: int, attempt: int, change: CheckpointChanged) -> None:
    """Record a change: the younger one gives the state, and either fills in what the other left out."""
    known = connection.execute(
        select(tables.checkpoints).where(
            tables.checkpoints.c.run_id == run_id, tables.checkpoints.c.checkpoint == change.checkpoint
        )
    ).first()
    said = {name: getattr(change, name) for name in Details.model_fields}
    if known is None:
        key = {"run_id": run_id, "checkpoint": change.checkpoint}
        connection.execute(
            insert(tables.checkpoints).values({**key, **_state(attempt, change), **_text(said)})
        )
        return
    before = Details.model_validate_json(known.details).model_dump()
    is_younger = _age(change) >= (known.time, _ORDER.index(known.state))
    older, younger = (before, said) if is_younger else (said, before)
    merged = {**older, **{name: value for name, value in younger.items() if value is not None}}
    state = _state(attempt, change) if is_younger else {}
    connection.execute(
        update(tables.checkpoints)
        .where(tables.checkpoints.c.run_id == run_id, tables.checkpoints.c.checkpoint == change.checkpoint)
        .values({**state, **_text(merged)})
    )


def newest_good(connection: Connection, run_id: int) -> GoodCheckpoint | None:
    """The good checkpoint of the highest step."""
    row = connection.execute(
        select(tables.checkpoints.c.checkpoint, tables.checkpoints.c.step)
        .where(tables.checkpoints.c.run_id == run_id, tables.checkpoints.c.state == CheckpointState.GOOD)
        .order_by(tables.checkpoints.c.step.desc())
        .limit(1)
    ).first()
    return None if row is None else GoodCheckpoint(checkpoint=row.checkpoint, step=row.step)


def newest_valid(connection: Connection, run_id: int) -> ValidCheckpoint | None:
    """The checkpoint of the highest step that passed its checks: good, or sealed and on its way there."""
    step = connection.scalar(
        select(func.max(tables.checkpoints.c.step)).where(
            tables.checkpoints.c.run_id == run_id,
            tables.checkpoints.c.state.in_((CheckpointState.SEALED, CheckpointState.GOOD)),
        )
    )
    return None if step is None else ValidCheckpoint(step=step)


def refuse_bad(connection: Connection, run_id: int, step: int) -> None:
    """What is known to be bad is no place to go back to. Raises Conflict if nothing else is at ``step``."""
    known = tables.checkpoints.c
    rows = connection.execute(
        select(tables.checkpoints).where(
            known.run_id == run_id, known.step == step, known.state != CheckpointState.DELETED
        )
    ).all()
    if not rows or any(row.state != CheckpointState.BAD for row in rows):
        return
    before = connection.scalar(
        select(func.max(known.step)).where(
            known.run_id == run_id, known.step < step, known.state == CheckpointState.GOOD
        )
    )
    failed = Details.model_validate_json(rows[0].details).failed_check
    why = f" (it fails {failed})" if failed else ""
    better = (
        "no good one is known before it" if before is None else f"the good one before it is of step {before}"
    )
    raise Conflict(
        f"checkpoint {rows[0].checkpoint} is bad{why}, and the trainer goes back to good ones only; "
        f"{better}; an order without a step goes to the newest good one"
    )


def details(row: Row[Any]) -> dict[str, Any]:
    """The details of a row of ``checkpoints``."""
    return Details.model_validate_json(row.details).model_dump()


def _age(change: CheckpointChanged) -> tuple[Any, int]:
    return change.time, _ORDER.index(change.state)


def _state(attempt: int, change: CheckpointChanged) -> dict[str, Any]:
    return {"attempt": attempt, "step": change.step, "state": change.state, "time": change.time}


def _text(said: dict[str, Any]) -> dict[str, str]:
    return {"details": Details(**said).model_dump_json()}
