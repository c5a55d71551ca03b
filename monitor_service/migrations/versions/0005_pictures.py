"""Pictures that trainers send: drawn maps, and samples at fault."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "pictures",
        sa.Column("run_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("picture", sa.String(100), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(30), nullable=False),
        sa.Column("incident", sa.String(100), nullable=True),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("png", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "picture", name="pk_pictures"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_pictures_run_id_runs", ondelete="CASCADE"),
    )
    op.create_index("ix_pictures_run_id_kind_step", "pictures", ["run_id", "kind", "step"])


def downgrade() -> None:
    """All pictures are lost."""
    op.drop_table("pictures")
