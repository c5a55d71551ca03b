"""Which training a run's name belongs to, and which process an attempt."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("identity", sa.String(64)))
    op.add_column("attempts", sa.Column("session", sa.String(64)))


def downgrade() -> None:
    op.drop_column("attempts", "session")
    op.drop_column("runs", "identity")
