"""Orders that may be repeated, ends of commands that stay counted, alerts apart by project."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("commands", sa.Column("order_key", sa.String(200)))
    op.add_column("commands", sa.Column("order_digest", sa.LargeBinary(16)))
    op.create_index("ix_commands_run_id_order_key", "commands", ["run_id", "order_key"], unique=True)
    op.create_table(
        "command_tallies",
        sa.Column("kind", sa.String(30), nullable=False),
        sa.Column("state", sa.String(30), nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("kind", "state", name="pk_command_tallies"),
    )
    with op.batch_alter_table("alerts") as alerts:
        alerts.add_column(sa.Column("project", sa.String(100), nullable=False, server_default=""))
        alerts.drop_constraint("uq_alerts_fingerprint_starts_at", type_="unique")
        alerts.create_unique_constraint(
            "uq_alerts_project_fingerprint_starts_at", ["project", "fingerprint", "starts_at"]
        )


def downgrade() -> None:
    # states that the code before does not know; the message still says who took the command back
    for table in ("commands", "command_history"):
        op.execute(f"UPDATE {table} SET state = 'expired' WHERE state IN ('cancelling', 'cancelled')")
    # an episode that several projects told is one again: that of the sender for all, or told first, stays
    op.execute(
        "DELETE FROM alerts WHERE EXISTS (SELECT 1 FROM alerts AS other WHERE "
        "other.fingerprint = alerts.fingerprint AND other.starts_at = alerts.starts_at "
        "AND (other.project < alerts.project))"
    )
    with op.batch_alter_table("alerts") as alerts:
        alerts.drop_constraint("uq_alerts_project_fingerprint_starts_at", type_="unique")
        alerts.drop_column("project")
        alerts.create_unique_constraint("uq_alerts_fingerprint_starts_at", ["fingerprint", "starts_at"])
    op.drop_table("command_tallies")
    op.drop_index("ix_commands_run_id_order_key", "commands")
    op.drop_column("commands", "order_digest")
    op.drop_column("commands", "order_key")
