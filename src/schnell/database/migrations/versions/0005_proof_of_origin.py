"""What each picture carries as proof of its origin, who may leave the mark out, and the key that signs.

Pictures are found again by both, so both have an index. The key is one row; which of the servers writes it, they settle
among themselves (`accounts/signing_keys`).
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and the table; pictures from before carry nothing."""
    _let_pictures_say_what_they_carry()
    _let_teams_leave_the_mark_out()
    _make_room_for_the_key()


def downgrade() -> None:
    """Drop them. The key stays in the data folders."""
    op.drop_table("signing_keys")
    op.drop_column("teams", "may_disable_watermark")
    for column in ("manifest", "mark"):
        op.drop_index(op.f(f"ix_images_{column}"), "images")
        op.drop_column("images", column)


def _let_pictures_say_what_they_carry() -> None:
    for column in (sa.Column("mark", sa.String(length=10)), sa.Column("manifest", sa.String(length=80))):
        op.add_column("images", column)
        op.create_index(op.f(f"ix_images_{column.name}"), "images", [column.name])


def _let_teams_leave_the_mark_out() -> None:
    # no team may, until an operator says so
    op.add_column("teams", sa.Column("may_disable_watermark", sa.Boolean(), server_default=sa.false(), nullable=False))


def _make_room_for_the_key() -> None:
    op.create_table(
        "signing_keys",
        sa.Column("name", sa.String(length=20), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_signing_keys")),
    )
