"""Statements of the busiest path: turned into SQL once for each kind of database, and then only carried out.

SQLAlchemy builds, keys and looks up a statement anew at each use, which costs more than the database's own
work on a small one. Here the SQL text, the order of its values and what turns values into columns and back
are kept. Everything else stays as it was: the same Core expressions, types, transactions and errors.
"""

from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Connection, Dialect, or_
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import ClauseElement
from sqlalchemy.types import NullType

Processor = Callable[[Any], Any]


@dataclass(frozen=True)
class _Form:
    """A statement in the words of one kind of database."""

    sql: str
    writers: Sequence[tuple[str, Processor]]
    """What turns a value into what the driver takes, for those that need it."""
    fixed: Mapping[str, Any]
    """Values that the statement itself holds, as the driver takes them."""
    places: Callable[[Mapping[str, Any]], Any]
    """The values as the driver takes them all: by name, or by place."""
    readers: Sequence[tuple[int, Processor]]
    """What turns a column into a value, for those that need it."""
    width: int
    """So many columns."""
    row: Callable[[Iterable[Any]], Any]

    def values(self, given: Mapping[str, Any]) -> Any:
        told = {**self.fixed, **given}
        for name, write in self.writers:
            told[name] = write(told[name])
        return self.places(told)

    def read(self, row: Sequence[Any]) -> Any:
        told = list(row)
        for place, read in self.readers:
            told[place] = read(told[place])
        return self.row(told)


class Prepared:
    """One Core statement whose values are ``bindparam``s; for any thread."""

    def __init__(self, statement: ClauseElement) -> None:
        self._statement = statement
        self._forms: dict[str, _Form] = {}

    def all(self, connection: Connection, **values: Any) -> list[Any]:
        """The rows that a query finds, as named tuples."""
        form = self._form(connection.dialect)
        return [form.read(row) for row in _carry_out(connection, form, values).fetchall()]

    def columns(self, connection: Connection, **values: Any) -> Any:
        """The same turned round, a sequence for each column: cheaper where there are thousands of rows."""
        form = self._form(connection.dialect)
        rows = _carry_out(connection, form, values).fetchall()
        columns: list[Any] = list(zip(*rows, strict=True)) or [()] * form.width
        for place, read in form.readers:
            columns[place] = [read(one) for one in columns[place]]
        return form.row(columns)

    def first(self, connection: Connection, **values: Any) -> Any:
        """The first row, or ``None``."""
        form = self._form(connection.dialect)
        row = _carry_out(connection, form, values).fetchone()
        return None if row is None else form.read(row)

    def change(self, connection: Connection, **values: Any) -> int:
        """Carry out an insert or update; how many rows it touched."""
        count: int = _carry_out(connection, self._form(connection.dialect), values).rowcount
        return count

    def change_all(self, connection: Connection, rows: Iterable[Mapping[str, Any]]) -> None:
        """The same for each of these sets of values, of which there is at least one."""
        form = self._form(connection.dialect)
        carry_out(connection, form.sql, [form.values(row) for row in rows])

    def _form(self, dialect: Dialect) -> _Form:
        form = self._forms.get(dialect.name)
        if form is None:
            form = self._forms[dialect.name] = _form_of(self._statement, dialect)
        return form


def one_of(column: ColumnElement[Any], values: Iterable[Any]) -> ColumnElement[bool]:
    """``column IN values``, written out: a list of values has no fixed text."""
    return or_(*[column == value for value in sorted(values)])


def _form_of(statement: Any, dialect: Dialect) -> _Form:
    compiled: Any = statement.compile(dialect=dialect)
    assert not compiled.post_compile_params, "say one_of"
    untyped = [name for name, bind in compiled.binds.items() if isinstance(bind.type, NullType)]
    assert not untyped, f"{untyped} would reach the database as the driver likes: begin with the column"
    writers: Mapping[str, Processor] = compiled._bind_processors
    told = compiled.construct_params(_check=False)
    held = {name: value for name, value in told.items() if value is not None}
    columns = list(statement.selected_columns) if hasattr(statement, "selected_columns") else []
    readers = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
    make: Any = namedtuple  # its fields are known only here
    return _Form(
        sql=str(compiled),
        writers=[(name, write) for name, write in writers.items() if name not in held],
        fixed={name: writers[name](value) if name in writers else value for name, value in held.items()},
        places=_by_place(compiled.positiontup) if compiled.positional else dict,
        readers=[(place, read) for place, read in enumerate(readers) if read is not None],
        width=len(columns),
        row=make("Found", [column.key for column in columns])._make,
    )


def _by_place(names: Sequence[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    if len(names) > 1:
        return itemgetter(*names)
    return lambda told: tuple(told[name] for name in names)


def _carry_out(connection: Connection, form: _Form, given: Mapping[str, Any]) -> Any:
    """What came back: rows as plain tuples, and their number."""
    return carry_out(connection, form.sql, form.values(given))


def carry_out(connection: Connection, sql: str, values: Any = ()) -> Any:
    """The same for SQL in the words of the driver; it is carried out for each of a list of values."""
    if connection.dialect.name != "sqlite":
        return connection.exec_driver_sql(sql, values)
    raw: Any = connection.connection.driver_connection
    try:
        return raw.executemany(sql, values) if isinstance(values, list) else raw.execute(sql, values)
    except raw.Error as error:
        raise DBAPIError.instance(sql, None, error, raw.Error, dialect=connection.dialect) from error
