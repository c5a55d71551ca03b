"""Statements of the busiest path: turned into SQL once for each kind of database, and then only carried out.

SQLAlchemy builds, keys and looks up a statement anew at each use, which costs more than the database's own
work on a small one. Here the SQL text, the order of its values and what turns values into columns and back
are kept. Everything else stays as it was: the same Core expressions, types, transactions and errors.
"""

from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Dialect, or_
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import ClauseElement

Processor = Callable[[Any], Any]


@dataclass(frozen=True)
class _Form:
    """A statement in the words of one kind of database."""

    sql: str
    names: Sequence[str]
    """Of the values, in their order."""
    writers: Mapping[str, Processor]
    """What turns a value into what the driver takes, for those that need it."""
    fixed: Mapping[str, Any]
    """Values that the statement itself holds."""
    readers: Sequence[Processor | None]
    row: Callable[..., Any]
    is_named: bool
    """The driver takes values by name, not by place."""

    def values(self, given: Mapping[str, Any]) -> Any:
        told = {**self.fixed, **given}
        for name, write in self.writers.items():
            told[name] = write(told[name])
        return told if self.is_named else tuple([told[name] for name in self.names])

    def read(self, row: Sequence[Any]) -> Any:
        return self.row(
            *[one if read is None else read(one) for read, one in zip(self.readers, row, strict=True)]
        )


class Prepared:
    """One Core statement whose values are ``bindparam``s; for any thread."""

    def __init__(self, statement: ClauseElement) -> None:
        self._statement = statement
        self._forms: dict[str, _Form] = {}

    def all(self, connection: Connection, **values: Any) -> list[Any]:
        """The rows that a query finds, as named tuples."""
        form = self._form(connection.dialect)
        return [form.read(row) for row in _carry_out(connection, form, values).fetchall()]

    def first(self, connection: Connection, **values: Any) -> Any:
        """The first row, or ``None``."""
        form = self._form(connection.dialect)
        row = _carry_out(connection, form, values).fetchone()
        return None if row is None else form.read(row)

    def change(self, connection: Connection, **values: Any) -> int:
        """Carry out an insert or update; how many rows it touched."""
        count: int = _carry_out(connection, self._form(connection.dialect), values).rowcount
        return count

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
    fixed = compiled.construct_params(_check=False)
    columns = list(statement.selected_columns) if hasattr(statement, "selected_columns") else []
    readers = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
    return _Form(
        sql=str(compiled),
        names=compiled.positiontup or [],
        writers=dict(compiled._bind_processors),
        fixed=fixed,
        readers=readers,
        row=namedtuple("Found", [column.key for column in columns]),
        is_named=not compiled.positional,
    )


def _carry_out(connection: Connection, form: _Form, given: Mapping[str, Any]) -> Any:
    """What came back: rows as plain tuples, and their number."""
    return carry_out(connection, form.sql, form.values(given))


def carry_out(connection: Connection, sql: str, values: Any = ()) -> Any:
    """The same for SQL in the words of the driver."""
    if connection.dialect.name != "sqlite":
        return connection.exec_driver_sql(sql, values)
    raw: Any = connection.connection.driver_connection
    try:
        return raw.execute(sql, values)
    except raw.Error as error:
        raise DBAPIError.instance(sql, None, error, raw.Error, dialect=connection.dialect) from error
