"""What is new: changes of status, events and commands in the order of their rows, and how far runs have come.

A position names the last row of each kind that somebody has seen, so whoever comes back with one misses
nothing, at whichever worker. It relies on rows becoming visible in the order of their ids: with several
writers at once (replicas on PostgreSQL) a row may become visible late and be left out of the live news.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, func, select

from monitor_service import tables
from monitor_service.errors import wrong_query
from monitor_service.health import OVER
from monitor_service.queries import summary
from monitor_service.runs import JSON

PAGE = 500
_POSITION = re.compile(r"(\d{1,18})\.(\d{1,18})\.(\d{1,18})")
_STEP_FIELDS = ("attempt", "step", "total_steps", "status", "loss", "grad_norm", "last_step_at", "last_seen")


@dataclass(frozen=True)
class Position:
    """The last row seen of each kind."""

    transition: int = 0
    event: int = 0
    command: int = 0

    def __str__(self) -> str:
        return f"{self.transition}.{self.event}.{self.command}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Raises InvalidMessage: ``text`` is no position."""
        found = _POSITION.fullmatch(text) if text.isascii() else None
        if found is None:
            raise wrong_query("Last-Event-ID", text, "send the id of an event of this stream, or none")
        return cls(*map(int, found.groups()))


@dataclass(frozen=True)
class News:
    """One thing that is new."""

    kind: str
    run: str
    project: str
    position: Position
    data: dict[str, Any]

    def as_text(self) -> bytes:
        """As a server-sent event; JSON has no line breaks, so one line of data is enough."""
        data = JSON.dump_json({"run": self.run, **self.data}).decode()
        return f"id: {self.position}\nevent: {self.kind}\ndata: {data}\n\n".encode()


def newest(connection: Connection) -> Position:
    """Where the stored news ends now."""
    tables_ = (tables.transitions, tables.events, tables.command_history)
    return Position(*(connection.scalar(select(func.max(table.c.id))) or 0 for table in tables_))


def between(connection: Connection, after: Position, until: Position | None = None) -> Iterator[News]:
    """Stored news after one position, up to another: transitions, then events, then commands."""
    position = after
    for kind, query, read in (
        ("transition", _transitions(), _transition),
        ("event", _events(), _event),
        ("command", _commands(), _command),
    ):
        last = None if until is None else getattr(until, kind)
        for row in _pages(connection, query, getattr(after, kind), last):
            position = Position(**{**vars(position), kind: row.id})
            name, data = read(row)
            yield News(name, row.run, row.project, position, data)


def steps(connection: Connection, seen: dict[str, str]) -> Iterator[News]:
    """Open runs whose facts are not as in ``seen``, which is brought up to date."""
    rows = connection.execute(select(tables.runs).where(tables.runs.c.status.not_in(OVER))).all()
    for gone in seen.keys() - {row.name for row in rows}:
        del seen[gone]
    for row in rows:
        if seen.get(row.name) != row.facts:
            is_first = row.name not in seen
            seen[row.name] = row.facts
            if not is_first:
                told = summary(row)
                data = {name: told[name] for name in _STEP_FIELDS}
                yield News("step", row.name, row.project, Position(), data)


def _pages(connection: Connection, query: Select[Any], after: int, until: int | None) -> Iterator[Any]:
    """Rows by id, some hundred at a time: nobody holds a million of them in memory."""
    id_ = query.selected_columns["id"]
    if until is not None:
        query = query.where(id_ <= until)
    while rows := connection.execute(query.where(id_ > after).order_by(id_).limit(PAGE)).all():
        yield from rows
        after = rows[-1].id
        if len(rows) < PAGE:
            return


def _transitions() -> Select[Any]:
    known, runs = tables.transitions.c, tables.runs.c
    return select(
        *(known.id, known.from_status, known.to_status, known.at, known.step, known.reasons),
        *(runs.name.label("run"), runs.project),
    ).join(tables.runs, runs.id == known.run_id)


def _transition(row: Any) -> tuple[str, dict[str, Any]]:
    names = ("from_status", "to_status", "at", "step")
    return "transition", {**{name: getattr(row, name) for name in names}, "reasons": json.loads(row.reasons)}


def _events() -> Select[Any]:
    known, runs = tables.events.c, tables.runs.c
    return select(
        *(known.id, known.attempt, known.type, known.data), *(runs.name.label("run"), runs.project)
    ).join(tables.runs, runs.id == known.run_id)


def _event(row: Any) -> tuple[str, dict[str, Any]]:
    kind = "finding" if row.type == "finding" else "event"
    return kind, {"attempt": row.attempt, "type": row.type, "data": json.loads(row.data)}


def _commands() -> Select[Any]:
    known, commands, runs = tables.command_history.c, tables.commands.c, tables.runs.c
    return (
        select(
            *(known.id, known.command_id, known.state, known.time, known.message),
            *(commands.kind, commands.reason, commands.issued_by, runs.name.label("run"), runs.project),
        )
        .join(tables.commands, commands.id == known.command_id)
        .join(tables.runs, runs.id == commands.run_id)
    )


def _command(row: Any) -> tuple[str, dict[str, Any]]:
    names = ("kind", "reason", "issued_by", "state", "time", "message")
    return "command", {"command": row.command_id, **{name: getattr(row, name) for name in names}}
