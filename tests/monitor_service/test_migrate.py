"""Migrations: up, down, up again, the same tables as the code's, and no step into the future."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect, text

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
