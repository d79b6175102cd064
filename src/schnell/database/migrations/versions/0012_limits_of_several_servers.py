"""Limits that servers of one database count together: requests in a time, and a team's generations under way."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0010"
branch_labels = None
depends_on = None

_IS_UNFINISHED = sa.text("status = 'QUEUED' OR status = 'PROCESSING'")


def upgrade() -> None:
    """Create the table of counts, and an index of what is under way."""
    op.create_table(
        "rate_counts",
        sa.Column("who", sa.String(length=64), nullable=False),
        sa.Column("rate", sa.String(length=100), nullable=False),
        sa.Column("part", sa.BigInteger(), nullable=False),
        sa.Column("counts", sa.JSON().with_variant(postgresql.ARRAY(sa.Integer()), "postgresql"), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("who", "rate", name=op.f("pk_rate_counts")),
    )
    op.create_index(
        "ix_records_unfinished",
        "records",
        ["team_id"],
        postgresql_where=_IS_UNFINISHED,
        sqlite_where=_IS_UNFINISHED,
    )


def downgrade() -> None:
    """Each server counts for itself again."""
    op.drop_index("ix_records_unfinished", "records")
    op.drop_table("rate_counts")
