"""Migrations: up, down, up again, the same tables as the code's, and no step into the future."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, insert, inspect, text

from monitor_service.errors import DatabaseNewer
from monitor_service.migrate import bring_up_to_date, take_back
from monitor_service.store import open_engine
from monitor_service.tables import metadata


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Of a database in which there is nothing at all."""
    url = f"sqlite:///{tmp_path}/monitor.db"
    if request.param == "postgresql":
        server, name = request.getfixturevalue("postgres"), f"bare_{uuid4().hex}"
        server.ask(f"CREATE DATABASE {name}")
        url = server.url(name)
    engine = open_engine(url)
    yield engine
    engine.dispose()


def test_the_migrated_tables_are_those_of_the_code(engine: Engine) -> None:
    bring_up_to_date(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        assert compare_metadata(context, metadata) == []
        names = {index["name"] for index in inspect(connection).get_indexes("batches")}
    assert "ix_batches_run_id_attempt_first_step" in names


def test_down_leaves_nothing_and_up_again_brings_all_back(engine: Engine) -> None:
    revision = bring_up_to_date(engine)
    take_back(engine, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    assert bring_up_to_date(engine) == revision
    assert set(metadata.tables) < set(inspect(engine).get_table_names())


def test_a_command_that_was_taken_back_has_expired_for_the_code_before(engine: Engine) -> None:
    bring_up_to_date(engine)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    words = dict.fromkeys(("name", "project", "config", "status", "reasons", "facts", "series_names"), "-")
    run = {"id": 1, "started_at": moment, "status_since": moment, **words}
    order = {"run_id": 1, "kind": "roll_back", "reason": "-", "issued_by": "-", "attempt": 1}
    times = {"issued_at": moment, "expires_at": moment}
    states = ("cancelling", "cancelled", "succeeded")
    with engine.begin() as connection:
        connection.execute(insert(metadata.tables["runs"]).values(run))
        rows = [{"id": f"c{number}", "state": state, **order, **times} for number, state in enumerate(states)]
        connection.execute(insert(metadata.tables["commands"]), rows)
    take_back(engine, "0006")
    with engine.connect() as connection:
        found = connection.scalars(text("SELECT state FROM commands ORDER BY id")).all()
    assert found == ["expired", "expired", "succeeded"]


def test_a_second_time_changes_nothing(engine: Engine) -> None:
    bring_up_to_date(engine)
    before = {name: inspect(engine).get_columns(name) for name in metadata.tables}
    bring_up_to_date(engine)
    after = {name: inspect(engine).get_columns(name) for name in metadata.tables}
    assert str(after) == str(before)


def test_a_database_of_a_newer_program_is_refused_and_left_alone(engine: Engine) -> None:
    newest = bring_up_to_date(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseNewer, match=f"revision 9999, this program knows up to {newest}"):
        bring_up_to_date(engine)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "9999"
