"""Rules that differ for a project or a run, and who chose them."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.add_column("runs", sa.Column("rules", sa.Text))
    op.create_table(
        "rule_changes",
        sa.Column("id", ID, nullable=False),
        sa.Column("run_id", ID),
        sa.Column("project", sa.String(100)),
        sa.Column("chosen", sa.Text, nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("changed_by", sa.String(100), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_rule_changes"),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.id"], name="fk_rule_changes_run_id_runs", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_rule_changes_run_id", "rule_changes", ["run_id"])
    op.create_index("ix_rule_changes_project", "rule_changes", ["project"])


def downgrade() -> None:
    op.drop_table("rule_changes")
    op.drop_column("runs", "rules")
