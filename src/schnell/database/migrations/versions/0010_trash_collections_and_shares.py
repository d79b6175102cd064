"""Deleted records that can be restored, collections of pictures, and links that show a picture to anybody."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "trash",
        sa.Column("record_id", sa.String(length=36), nullable=False),
        sa.Column("team_id", sa.String(length=36), nullable=False),
        sa.Column("deleted_by", sa.String(length=36), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("record_id", name=op.f("pk_trash")),
    )
    op.create_index("ix_trash_deleted", "trash", ["deleted_at"])
    op.create_table(
        "collections",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("team_id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("created_by", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_collections")),
        sa.UniqueConstraint("team_id", "name", name=op.f("uq_collections_team_id")),
    )
    op.create_table(
        "collection_pictures",
        sa.Column("collection_id", sa.String(length=36), nullable=False),
        sa.Column("image_key", sa.String(length=300), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["collection_id"], ["collections.id"], name=op.f("fk_collection_pictures_collection_id_collections")
        ),
        sa.PrimaryKeyConstraint("collection_id", "image_key", name=op.f("pk_collection_pictures")),
    )
    op.create_index("ix_collection_pictures_image", "collection_pictures", ["image_key"])
    op.create_table(
        "shares",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("team_id", sa.String(length=36), nullable=False),
        sa.Column("record_id", sa.String(length=36), nullable=False),
        sa.Column("image_key", sa.String(length=300), nullable=False),
        sa.Column("created_by", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shares")),
        sa.UniqueConstraint("image_key", name=op.f("uq_shares_image_key")),
    )
    op.create_index("ix_shares_record", "shares", ["record_id"])


def downgrade() -> None:
    """Drop the tables. What was deleted and not yet removed is shown again."""
    op.drop_index("ix_shares_record", "shares")
    op.drop_table("shares")
    op.drop_index("ix_collection_pictures_image", "collection_pictures")
    op.drop_table("collection_pictures")
    op.drop_table("collections")
    op.drop_index("ix_trash_deleted", "trash")
    op.drop_table("trash")
