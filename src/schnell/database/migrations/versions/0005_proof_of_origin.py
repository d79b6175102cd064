"""What each picture carries as proof of its origin, who may leave the mark out, and the key that signs."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and the table; pictures from before carry nothing."""
    op.add_column("images", sa.Column("mark", sa.String(length=10), nullable=True))
    op.add_column("images", sa.Column("manifest", sa.String(length=80), nullable=True))
    op.create_index(op.f("ix_images_mark"), "images", ["mark"])
    op.create_index(op.f("ix_images_manifest"), "images", ["manifest"])
    op.add_column("teams", sa.Column("may_disable_watermark", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_table(
        "signing_keys",
        sa.Column("name", sa.String(length=20), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_signing_keys")),
    )


def downgrade() -> None:
    """Drop them. The key stays in the data folders."""
    op.drop_table("signing_keys")
    op.drop_column("teams", "may_disable_watermark")
    op.drop_index(op.f("ix_images_manifest"), "images")
    op.drop_index(op.f("ix_images_mark"), "images")
    op.drop_column("images", "manifest")
    op.drop_column("images", "mark")
