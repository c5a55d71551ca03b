"""Alerts that were received."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "alerts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("starts_at", moment, nullable=False),
        sa.Column("ends_at", moment),
        sa.Column("status", sa.String(30), nullable=False),
        sa.Column("run", sa.String(100)),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("annotations", sa.Text, nullable=False),
        sa.Column("result", sa.String(30), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("command_id", sa.String(64)),
        sa.Column("first_received_at", moment, nullable=False),
        sa.Column("last_received_at", moment, nullable=False),
        sa.Column("times", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_alerts"),
        sa.UniqueConstraint("fingerprint", "starts_at", name="uq_alerts_fingerprint_starts_at"),
    )
    op.create_index("ix_alerts_run", "alerts", ["run"])
    op.create_index("ix_alerts_last_received_at", "alerts", ["last_received_at"])


def downgrade() -> None:
    op.drop_table("alerts")
