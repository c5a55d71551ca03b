"""A whole run as one file, and back: a zip of JSON lines, one member for each table, and a manifest.

Every name, session, sequence number, command and checkpoint keeps its identity, and every blob its bytes;
only the numbers that a database gives its rows are given anew. The tables are found by their foreign keys, so
a new table of runs is part of the file without a change here.
"""

import base64
import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import IO, Any

from pydantic import TypeAdapter
from sqlalchemy import Column, ColumnElement, Connection, Table, insert, or_, select
from sqlalchemy.exc import DataError, IntegrityError

from monitor_service import queries, rulebook, tables
from monitor_service.access import Principal
from monitor_service.errors import Conflict, Forbidden, MalformedBody
from monitor_service.queries import run_row
from monitor_service.views import RunDetail
from shared.base import Name
from shared.events import AnyEvent

FORMAT = "trainhealth-run-1"
MANIFEST = "manifest.json"
MAX_MEMBER_BYTES = 8 << 30
MAX_LINE_BYTES = 64 << 20
CHUNK_ROWS = 500

_EVENT: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)
_NAME: TypeAdapter[str] = TypeAdapter(Name)

_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, ValueError, KeyError, TypeError, AttributeError),
    *(EOFError, NotImplementedError, RuntimeError, RecursionError),
)
"""What ``zipfile`` and ``json`` raise about files that others made."""


def belonging() -> list[Table]:
    """The table of runs, and all that hang on it, each after those that it points to."""
    found: list[Table] = []
    for table in tables.metadata.sorted_tables:
        if table is tables.runs or any(key.column.table in found for key in table.foreign_keys):
            found.append(table)
    return found


def export(connection: Connection, run: str, revision: str, file: IO[bytes]) -> None:
    """Write the run to ``file``. Raises NotFound."""
    run_id = run_row(connection, run).id
    digests: dict[str, str] = {}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for table in belonging():
            digest = hashlib.sha256()
            with archive.open(_member(table), "w", force_zip64=True) as member:
                for line in _lines(connection, table, run_id):
                    digest.update(line)
                    member.write(line)
            digests[_member(table)] = digest.hexdigest()
        manifest = {"format": FORMAT, "run": run, "revision": revision, "sha256": digests}
        archive.writestr(MANIFEST, json.dumps(manifest))


def check(file: IO[bytes], revision: str) -> str:
    """Compare every member with the manifest before anything is stored; returns the run's name.

    Raises:
        MalformedBody: the file is damaged, or none of ours.
    """
    with _reading(file) as archive:
        manifest = json.loads(_whole(archive, MANIFEST))
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']!r:.80}, not {FORMAT!r}")
        if manifest["revision"] != revision:
            raise ValueError(
                f"it was written at revision {manifest['revision']!r:.80} and this database is at "
                f"{revision!r}; export it with the same version"
            )
        for table in belonging():
            digest = hashlib.sha256()
            for line in _members_lines(archive, table):
                digest.update(line)
            if digest.hexdigest() != manifest["sha256"][_member(table)]:
                raise ValueError(f"{_member(table)} is not as it was written")
        return _NAME.validate_python(manifest["run"])


def bring_in(connection: Connection, file: IO[bytes], name: str, principal: Principal) -> RunDetail:
    """Store the run from a file that was checked; with an error the caller's transaction ends.

    Raises:
        MalformedBody: a row is not what its table takes.
        Conflict: a run of this name, or one of its commands, is here already.
        Forbidden: it is of another project.
    """
    try:
        with _reading(file) as archive:
            _store(connection, archive, name, principal)
            return _prove(connection, name)
    except IntegrityError as error:
        raise Conflict("a part of the run is here already (a command, or the run itself)") from error
    except DataError as error:
        raise MalformedBody("the file holds what no table takes") from error


@contextmanager
def _reading(file: IO[bytes]) -> Iterator[zipfile.ZipFile]:
    try:
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            yield archive
    except _UNREADABLE as error:
        raise MalformedBody(f"the file holds no run that can be read: {error}") from error


def _member(table: Table) -> str:
    return f"{table.name}.jsonl"


def _belongs(table: Table, run_id: int) -> ColumnElement[bool]:
    """Which rows of ``table`` hang on the run."""
    if table is tables.runs:
        return table.c.id == run_id
    ways = [
        key.parent.in_(select(key.column).where(_belongs(key.column.table, run_id)))
        for key in sorted(table.foreign_keys, key=lambda key: key.parent.name)
        if key.column.table in belonging()
    ]
    return or_(*ways)


def _lines(connection: Connection, table: Table, run_id: int) -> Iterator[bytes]:
    rows = connection.execution_options(yield_per=CHUNK_ROWS).execute(
        select(table).where(_belongs(table, run_id)).order_by(*table.primary_key.columns)
    )
    for row in rows.mappings():
        yield json.dumps({name: _written(value) for name, value in row.items()}).encode() + b"\n"


def _written(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes | memoryview):
        return base64.b64encode(value).decode()
    return value


def _read(column: Column[Any], value: Any) -> Any:
    if value is None:
        return None
    if isinstance(column.type, tables.UtcDateTime):
        return datetime.fromisoformat(value)
    kind = column.type.python_type if not isinstance(column.type, tables.Word) else str
    if kind is bytes:
        return base64.b64decode(value, validate=True)
    if type(value) is not kind:
        raise ValueError(f"{column.name} is {value!r:.80}, not a {kind.__name__}")
    if isinstance(value, int) and abs(value) > tables.LARGEST_INTEGER:
        raise ValueError(f"{column.name} is {value}, it may be {tables.LARGEST_INTEGER} at most")
    return value


def _whole(archive: zipfile.ZipFile, member: str) -> bytes:
    with archive.open(member) as file:
        text = file.read(1 << 20)
        if file.read(1):
            raise ValueError(f"{member} is larger than 1 MiB")
        return text


def _members_lines(archive: zipfile.ZipFile, table: Table) -> Iterator[bytes]:
    size = 0
    with archive.open(_member(table)) as member:
        while line := member.readline(MAX_LINE_BYTES + 1):
            size += len(line)
            if len(line) > MAX_LINE_BYTES or size > MAX_MEMBER_BYTES:
                raise ValueError(f"{_member(table)} unpacks to more than is read here")
            yield line


def _store(connection: Connection, archive: zipfile.ZipFile, name: str, principal: Principal) -> None:
    renamed: dict[Column[Any], dict[Any, Any]] = {}
    for table in belonging():
        waiting: list[dict[str, Any]] = []
        number = table.c.get("id")
        is_numbered = number is not None and number.type.python_type is int
        is_pointed_to = any(number is key.column for other in belonging() for key in other.foreign_keys)
        for line in _members_lines(archive, table):
            row = _row(table, json.loads(line), renamed)
            if table is tables.runs:
                _check_run(connection, row, name, principal)
            old = row.pop("id") if is_numbered else None
            if is_numbered and is_pointed_to and number is not None:
                new = connection.scalar(insert(table).values(row).returning(number))
                renamed.setdefault(number, {})[old] = new
            else:
                waiting.append(row)
                if len(waiting) == CHUNK_ROWS:
                    connection.execute(insert(table), waiting)
                    waiting = []
        if waiting:
            connection.execute(insert(table), waiting)
        if table is tables.runs and not renamed:
            raise ValueError("it holds no run")


def _prove(connection: Connection, name: str) -> RunDetail:
    """Read what pages read: what would break them later is refused now. Blobs are taken as they are."""
    run_id = run_row(connection, name).id
    known = tables.events.c
    for data in connection.scalars(select(known.data).where(known.run_id == run_id)):
        _EVENT.validate_json(data)
    rulebook.refresh(connection, run_row(connection, name))
    queries.health(connection, name)
    queries.checkpoints(connection, name)
    queries.commands(connection, name)
    return queries.run_detail(connection, name)


def _row(table: Table, told: dict[str, Any], renamed: dict[Column[Any], dict[Any, Any]]) -> dict[str, Any]:
    if set(told) != set(table.c.keys()):
        raise ValueError(f"{table.name} has other columns here")
    row = {column.name: _read(column, told[column.name]) for column in table.c}
    for key in table.foreign_keys:
        if key.column in renamed and row[key.parent.name] is not None:
            row[key.parent.name] = renamed[key.column][row[key.parent.name]]
    return row


def _check_run(connection: Connection, row: dict[str, Any], name: str, principal: Principal) -> None:
    if row["name"] != name:
        raise ValueError("the manifest names another run, or it holds several")
    if not principal.sees(row["project"]):
        raise Forbidden(
            f"token {principal.name!r} is for project {principal.project!r}, not {row['project']!r}"
        )
    if connection.scalar(select(tables.runs.c.id).where(tables.runs.c.name == name)) is not None:
        raise Conflict(f"run {name!r} is here already; a run is never written over")
