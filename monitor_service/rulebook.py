"""Which rules hold for a run: the settings, over them what was chosen for its project, over that for itself.

Each choice is a row that stays, with who, when and why; the newest of a project or run is what holds. Its
effect is also written into the row of each run, where a batch finds it without a question.
"""

import json
import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from sqlalchemy import ColumnElement, Connection, Row, insert, select, text, update

from monitor_service import tables
from monitor_service.errors import InvalidMessage, Violation
from monitor_service.queries import run_row
from monitor_service.settings import RunRules, Settings
from shared.base import Message, Moment

log = logging.getLogger(__name__)

MAX_HISTORY = 50


class Strict(RunRules):
    """The same, and a misspelt name is refused."""

    model_config = ConfigDict(extra="forbid")


class RulesRequest(Message):
    """What is to differ from the settings, all of it: what is left out is as the settings say."""

    values: dict[str, float | str] = Field(max_length=100)
    reason: str = Field(min_length=1, max_length=500)
    changed_by: str = Field("operator", min_length=1, max_length=100)


class RulesChange(Message):
    """One choice."""

    values: dict[str, float | str]
    reason: str
    changed_by: str
    changed_at: Moment


class RulesView(Message):
    """Which rules hold, and where they come from."""

    project: str
    run: str | None
    values: dict[str, float | str] = Field(description="What holds.")
    of_project: dict[str, float | str] = Field(description="What was chosen for the project.")
    of_run: dict[str, float | str] = Field(description="What was chosen for the run.")
    history: list[RulesChange] = Field(description="Choices for this project, or this run; youngest first.")


_VALUES: TypeAdapter[dict[str, float | str]] = TypeAdapter(dict[str, float | str])


def rules_of(settings: Settings, chosen: str | None) -> RunRules:
    """The rules of a run whose row says ``chosen``; a value that is refused by now is not in the way."""
    if chosen is None:
        return settings
    try:
        return _merged(settings, json.loads(chosen))
    except (ValueError, TypeError) as error:
        log.error("these rules will not do, the settings hold instead: %s: %s", chosen, error)
        return settings


def _merged(settings: RunRules, chosen: Mapping[str, Any]) -> Strict:
    return Strict.model_validate({**_plain(settings), **chosen})


def check(request: RulesRequest, settings: Settings) -> None:
    """Let values pass that would be taken as settings.

    Raises:
        InvalidMessage: with each that would not.
    """
    try:
        _merged(settings, request.values)
    except ValidationError as error:
        raise InvalidMessage(
            [
                Violation(".".join(map(str, ("values", *one["loc"]))), repr(one["input"])[:80], one["msg"])
                for one in error.errors()
            ]
        ) from error


def effective(connection: Connection, run: str, project: str) -> str | None:
    """What differs from the settings for a run of this name, if it is of this project."""
    run_id = connection.scalar(select(tables.runs.c.id).where(tables.runs.c.name == run))
    own = {} if run_id is None else _newest(connection, tables.rule_changes.c.run_id == run_id)
    chosen = {**_newest(connection, tables.rule_changes.c.project == project), **own}
    return json.dumps(chosen) if chosen else None


def refresh(connection: Connection, run: Any) -> None:
    """Bring the run's row up to date with what was chosen. Raises ValueError: a choice is not readable."""
    _history(connection, tables.rule_changes.c.run_id == run.id)
    chosen = effective(connection, run.name, run.project)
    connection.execute(update(tables.runs).where(tables.runs.c.id == run.id).values(rules=chosen))


def choose_for_run(connection: Connection, run: Row[Any], request: RulesRequest, now: datetime) -> None:
    """Let these values hold for one run, which the caller holds."""
    _note(connection, request, now, run_id=run.id)
    refresh(connection, run)


def choose_for_project(connection: Connection, project: str, request: RulesRequest, now: datetime) -> None:
    """Let these values hold for all runs of a project, those to come among them.

    Its runs are locked in the order of their names, as ``alerts.receive`` locks them.
    """
    lock(connection, project)
    _note(connection, request, now, project=project)
    known = tables.runs.c
    for name in sorted(connection.scalars(select(known.name).where(known.project == project))):
        is_it = (known.name == name) & (known.project == project)
        query = select(known.id, known.name, known.project).where(is_it).with_for_update()
        run = connection.execute(query).first()
        if run is not None:  # it may have left
            refresh(connection, run)


def lock(connection: Connection, project: str, *, shared: bool = False) -> None:
    """Keep the choices for a project as they are until this transaction ends; before any lock on a run.

    Without it a run that registers while its project's rules change would keep the old ones: neither
    transaction sees the other. SQLite lets one writer in at a time anyhow.
    """
    if connection.dialect.name == "postgresql":
        name = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
        connection.execute(
            text(f"SELECT {name}(hashtextextended(:project, 0))"), {"project": f"rules {project}"}
        )


def _note(connection: Connection, request: RulesRequest, now: datetime, **whose: Any) -> None:
    told = {"reason": request.reason, "changed_by": request.changed_by, "changed_at": now}
    chosen = json.dumps(request.values)
    connection.execute(insert(tables.rule_changes).values(**whose, **told, chosen=chosen))


def of_run(connection: Connection, run: str, settings: Settings) -> RulesView:
    """The rules of a run. Raises NotFound."""
    row = run_row(connection, run)
    is_own = tables.rule_changes.c.run_id == row.id
    return RulesView(
        project=row.project,
        run=run,
        values=_plain(rules_of(settings, row.rules)),
        of_project=_newest(connection, tables.rule_changes.c.project == row.project),
        of_run=_newest(connection, is_own),
        history=_history(connection, is_own),
    )


def of_project(connection: Connection, project: str, settings: Settings) -> RulesView:
    """The rules of a project; there need not be a run of it yet."""
    is_its = tables.rule_changes.c.project == project
    chosen = _newest(connection, is_its)
    return RulesView(
        project=project,
        run=None,
        values=_plain(_merged(settings, chosen)),
        of_project=chosen,
        of_run={},
        history=_history(connection, is_its),
    )


def _plain(rules: RunRules) -> dict[str, float | str]:
    return {name: getattr(rules, name) for name in RunRules.model_fields}


def _newest(connection: Connection, whose: ColumnElement[bool]) -> dict[str, float | str]:
    known = tables.rule_changes.c
    query = select(known.chosen).where(whose).order_by(known.id.desc()).limit(1)
    text = connection.scalar(query)
    return {} if text is None else _VALUES.validate_json(text)


def _history(connection: Connection, whose: ColumnElement[bool]) -> list[RulesChange]:
    known = tables.rule_changes.c
    rows = connection.execute(
        select(tables.rule_changes).where(whose).order_by(known.id.desc()).limit(MAX_HISTORY)
    )
    return [
        RulesChange(
            values=_VALUES.validate_json(row.chosen),
            reason=row.reason,
            changed_by=row.changed_by,
            changed_at=row.changed_at,
        )
        for row in rows
    ]
