"""How often commands came to each end: read from their lives, and kept when a run leaves with its commands.

Each coming to an end counts, also of a command that lapsed here and succeeded there: what was counted once is
never taken back, as a counter must not fall.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, not_, select, true
from sqlalchemy.dialects import postgresql, sqlite

from monitor_service import tables
from monitor_service.prepared import Prepared, one_of
from shared.commands import OPEN_COMMAND_STATES

_COMMANDS, _HISTORY, _TALLIES = tables.commands.c, tables.command_history.c, tables.command_tallies.c


def ends(*columns: ColumnElement[Any], of: ColumnElement[bool] | None = None) -> Select[Any]:
    """A query for how often commands came to an end: ``columns`` of their rows, the state, and the number."""
    query: Select[Any] = select(*columns, _HISTORY.state, func.count().label("count")).join_from(
        tables.command_history, tables.commands, _HISTORY.command_id == _COMMANDS.id
    )
    is_open = one_of(_HISTORY.state, OPEN_COMMAND_STATES)
    return query.where(not_(is_open), true() if of is None else of).group_by(*columns, _HISTORY.state)


_TOTALS = (
    Prepared(ends(_COMMANDS.kind)),
    Prepared(select(_TALLIES.kind, _TALLIES.state, _TALLIES.count)),
)


def totals(connection: Connection) -> Mapping[tuple[str, str], int]:
    """Ends by kind and state, of all commands that there ever were."""
    counts: Counter[tuple[str, str]] = Counter()
    for query in _TOTALS:
        for kind, state, count in query.all(connection):
            counts[kind, state] += count
    return counts


def keep(connection: Connection, run_id: int) -> None:
    """Write down the ends of a run's commands: it is about to leave. The caller holds it.

    In one statement that adds or begins, as another monitor may count the same ends of another run now; in
    one order, so that the two cannot wait for each other crosswise.
    """
    rows = connection.execute(ends(_COMMANDS.kind, of=_COMMANDS.run_id == run_id)).all()
    if not rows:
        return
    add = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    told = add(tables.command_tallies).values(
        [{"kind": kind, "state": state, "count": count} for kind, state, count in sorted(rows)]
    )
    more = _TALLIES.count + told.excluded.count
    connection.execute(told.on_conflict_do_update(index_elements=["kind", "state"], set_={"count": more}))
