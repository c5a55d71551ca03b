"""Batches are compacted into blocks and chunks; a ledger remembers what was received."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("runs", sa.Column("compactions", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index("ix_batches_run_id_attempt_num_steps", "batches", ["run_id", "attempt", "num_steps"])
    _create_series()
    _create_ledger()
    _create_leases()
    if op.get_bind().dialect.name == "postgresql":  # packed already: the server need not try
        for table, column in (("batches", "payload"), ("blocks", "axis"), ("chunks", "payload")):
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE EXTERNAL")


def downgrade() -> None:
    """Points in blocks and what the ledger knows are lost; batches not yet compacted stay."""
    for table in ("leases", "ledger", "chunks", "blocks", "series"):
        op.drop_table(table)
    op.drop_index("ix_batches_run_id_attempt_num_steps", "batches")
    op.drop_column("runs", "compactions")


def _of_run(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["run_id"], ["runs.id"], name=f"fk_{table}_run_id_runs", ondelete="CASCADE"
    )


def _create_series() -> None:
    op.create_table(
        "series",
        sa.Column("id", ID, nullable=False),
        sa.Column("run_id", ID, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_series"),
        sa.UniqueConstraint("run_id", "name", name="uq_series_run_id_name"),
        _of_run("series"),
    )
    op.create_table(
        "blocks",
        sa.Column("id", ID, nullable=False),
        sa.Column("run_id", ID, nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("first_step", sa.BigInteger(), nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column("num_rows", sa.Integer(), nullable=False),
        sa.Column("received_at", MOMENT, nullable=False),
        sa.Column("codec", sa.SmallInteger(), nullable=False),
        sa.Column("axis", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("id", name="pk_blocks"),
        _of_run("blocks"),
    )
    op.create_index("ix_blocks_run_id_attempt_first_step", "blocks", ["run_id", "attempt", "first_step"])
    op.create_table(
        "chunks",
        sa.Column("block_id", ID, nullable=False),
        sa.Column("series_id", ID, nullable=False),
        sa.Column("header", sa.LargeBinary(), nullable=False),
        sa.Column("payload", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("block_id", "series_id", name="pk_chunks"),
        sa.ForeignKeyConstraint(
            ["block_id"], ["blocks.id"], name="fk_chunks_block_id_blocks", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["series_id"], ["series.id"], name="fk_chunks_series_id_series", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_chunks_series_id", "chunks", ["series_id"])


def _create_ledger() -> None:
    op.create_table(
        "ledger",
        sa.Column("run_id", ID, nullable=False),
        sa.Column("session", sa.String(64), nullable=False),
        sa.Column("first_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("digests", sa.LargeBinary(), nullable=False),
        sa.Column("outbox", sa.Text(), nullable=False),
        sa.Column("received_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "session", "first_seq", name="pk_ledger"),
        _of_run("ledger"),
    )


def _create_leases() -> None:
    op.create_table(
        "leases",
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("holder", sa.String(100), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )
