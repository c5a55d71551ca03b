"""The first tables: runs, what they sent, what was made of it, and commands."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
MOMENT = sa.DateTime(timezone=True)
WORD = sa.String(30)


def _column(name: str, kind: TypeEngine[Any]) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False)


def _key(table: str, *columns: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint(*columns, name=f"pk_{table}")


def _unique(table: str, *columns: str) -> sa.UniqueConstraint:
    return sa.UniqueConstraint(*columns, name=f"uq_{table}_{'_'.join(columns)}")


def _points_to(table: str, column: str, other: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        [column], [f"{other}.id"], name=f"fk_{table}_{column}_{other}", ondelete="CASCADE"
    )


def _index(table: str, *columns: str) -> None:
    op.create_index(f"ix_{table}_{'_'.join(columns)}", table, list(columns))


def upgrade() -> None:
    _create_runs()
    _create_what_they_sent()
    _create_what_was_made_of_it()
    _create_commands()


def downgrade() -> None:
    for table in (
        "command_history",
        "commands",
        "transitions",
        "checkpoints",
        "events",
        "batches",
        "attempts",
        "runs",
    ):
        op.drop_table(table)


def _create_runs() -> None:
    op.create_table(
        "runs",
        _column("id", ID),
        _column("name", sa.String(100)),
        _column("project", sa.String(100)),
        _column("config", sa.Text()),
        sa.Column("total_steps", sa.BigInteger()),
        sa.Column("checkpoint_interval_steps", sa.BigInteger()),
        _column("started_at", MOMENT),
        _column("status", WORD),
        _column("status_since", MOMENT),
        _column("reasons", sa.Text()),
        _column("facts", sa.Text()),
        _column("series_names", sa.Text()),
        _key("runs", "id"),
        _unique("runs", "name"),
    )
    _index("runs", "project")
    _index("runs", "status")
    op.create_table(
        "attempts",
        _column("run_id", ID),
        _column("attempt", sa.BigInteger()),
        _column("start_step", sa.BigInteger()),
        _column("is_announced", sa.Boolean()),
        sa.Column("reason", WORD),
        sa.Column("checkpoint", sa.String(100)),
        _column("started_at", MOMENT),
        _key("attempts", "run_id", "attempt"),
        _points_to("attempts", "run_id", "runs"),
    )


def _create_what_they_sent() -> None:
    op.create_table(
        "batches",
        _column("id", ID),
        _column("run_id", ID),
        _column("session", sa.String(64)),
        _column("seq", sa.BigInteger()),
        _column("attempt", sa.BigInteger()),
        _column("received_at", MOMENT),
        _column("digest", sa.LargeBinary(16)),
        _column("outbox", sa.Text()),
        _column("num_steps", sa.Integer()),
        sa.Column("first_step", sa.BigInteger()),
        sa.Column("last_step", sa.BigInteger()),
        sa.Column("codec", sa.SmallInteger()),
        sa.Column("payload", sa.LargeBinary()),
        _key("batches", "id"),
        _unique("batches", "run_id", "session", "seq"),
        _points_to("batches", "run_id", "runs"),
    )
    _index("batches", "run_id", "attempt", "first_step")
    op.create_table(
        "events",
        _column("id", ID),
        _column("run_id", ID),
        _column("session", sa.String(64)),
        _column("seq", sa.BigInteger()),
        _column("idx", sa.Integer()),
        _column("attempt", sa.BigInteger()),
        _column("step", sa.BigInteger()),
        _column("time", MOMENT),
        _column("received_at", MOMENT),
        _column("type", sa.String(100)),
        sa.Column("severity", WORD),
        _column("data", sa.Text()),
        _key("events", "id"),
        _unique("events", "run_id", "session", "seq", "idx"),
        _points_to("events", "run_id", "runs"),
    )
    _index("events", "run_id", "type", "id")


def _create_what_was_made_of_it() -> None:
    op.create_table(
        "checkpoints",
        _column("run_id", ID),
        _column("checkpoint", sa.String(100)),
        _column("attempt", sa.BigInteger()),
        _column("step", sa.BigInteger()),
        _column("state", WORD),
        _column("time", MOMENT),
        _column("details", sa.Text()),
        _key("checkpoints", "run_id", "checkpoint"),
        _points_to("checkpoints", "run_id", "runs"),
    )
    op.create_table(
        "transitions",
        _column("id", ID),
        _column("run_id", ID),
        _column("from_status", WORD),
        _column("to_status", WORD),
        _column("at", MOMENT),
        sa.Column("step", sa.BigInteger()),
        _column("reasons", sa.Text()),
        _key("transitions", "id"),
        _points_to("transitions", "run_id", "runs"),
    )
    _index("transitions", "run_id", "id")


def _create_commands() -> None:
    op.create_table(
        "commands",
        _column("id", sa.String(64)),
        _column("run_id", ID),
        _column("kind", WORD),
        _column("reason", sa.String(500)),
        _column("issued_by", sa.String(100)),
        _column("issued_at", MOMENT),
        _column("expires_at", MOMENT),
        _column("attempt", sa.BigInteger()),
        sa.Column("to_step", sa.BigInteger()),
        _column("state", WORD),
        _key("commands", "id"),
        _points_to("commands", "run_id", "runs"),
    )
    _index("commands", "run_id", "issued_at")
    _index("commands", "state")
    op.create_table(
        "command_history",
        _column("id", ID),
        _column("command_id", sa.String(64)),
        _column("state", WORD),
        _column("time", MOMENT),
        _column("message", sa.Text()),
        _key("command_history", "id"),
        _points_to("command_history", "command_id", "commands"),
    )
    _index("command_history", "command_id")
