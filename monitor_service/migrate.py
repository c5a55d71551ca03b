"""Brings a database to the revision that this program knows, and refuses one that is newer."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine

from monitor_service.errors import DatabaseNewer
from monitor_service.store import writing

MIGRATION_LOCK = 0x74726169
"""Any number, the same in every process."""

SCRIPTS = Path(__file__).with_name("migrations")


def bring_up_to_date(engine: Engine) -> str:
    """Apply what is missing, in one transaction; returns the revision reached.

    Raises:
        DatabaseNewer: the database is at a revision that this program has never heard of.
    """
    with writing(engine) as connection, connection.begin():
        _wait_for_others(connection)
        config = _config(connection)
        newest = _newest(config)
        _refuse_newer(config, MigrationContext.configure(connection).get_current_revision(), newest)
        command.upgrade(config, "head")
        return newest


def _wait_for_others(connection: Connection) -> None:
    """One process migrates at a time: SQLite's write lock is held already, PostgreSQL is asked for one."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")


def take_back(engine: Engine, revision: str) -> None:
    """Undo migrations down to ``revision`` (``base``: all of them, with all data)."""
    with writing(engine) as connection, connection.begin():
        command.downgrade(_config(connection), revision)


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _newest(config: Config) -> str:
    newest = ScriptDirectory.from_config(config).get_current_head()
    assert newest is not None, f"no migrations in {SCRIPTS}"
    return newest


def _refuse_newer(config: Config, found: str | None, newest: str) -> None:
    if found is None:
        return
    try:
        ScriptDirectory.from_config(config).get_revision(found)
    except CommandError as error:
        raise DatabaseNewer(found, newest) from error
