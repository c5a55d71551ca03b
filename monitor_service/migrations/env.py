"""Alembic's entry: runs migrations on the connection and in the transaction that ``migrate.py`` opened."""

from alembic import context

from monitor_service.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,  # SQLite changes a column only by copying the table
)
with context.begin_transaction():
    context.run_migrations()
