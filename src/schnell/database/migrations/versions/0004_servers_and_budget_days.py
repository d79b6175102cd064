"""Servers that hold leases; ledger rows that name the day whose budget they count in."""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_members = sa.table("members", *map(sa.column, ("team_id", "user_id", "used_credit", "window_label")))
_teams = sa.table("teams", *map(sa.column, ("id", "used_credit", "window_label")))
_ledger = sa.table(
    "ledger",
    *map(sa.column, ("team_id", "user_id", "key_id", "record_id", "kind", "amount", "pictures", "day")),
    *map(sa.column, ("team_window", "member_window")),
    sa.column("created_at", sa.DateTime(timezone=True)),
)
_records = sa.table("records", sa.column("id"), sa.column("status"))


def upgrade() -> None:
    """Create the table of servers, and bring ledger and counters into agreement under the new rule."""
    op.create_table(
        "servers",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("label", sa.String(length=100), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("boot", sa.String(length=100), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("held_since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_servers")),
    )
    if op.get_bind().dialect.name == "postgresql":
        # a server of the version before may be settling meanwhile; its own order of tables, so that neither waits in a
        # circle. SQLite's one writer is this migration
        op.execute("LOCK TABLE members, teams, ledger IN SHARE ROW EXCLUSIVE MODE")
    _release_what_deleted_records_hold()
    _name_days()
    _count_again()


def downgrade() -> None:
    """Drop the table. The ledger's days stay: they are labels of windows, too."""
    op.drop_table("servers")


def _release_what_deleted_records_hold() -> None:
    """What was set aside for a record that was deleted through one server while another drew it never came back."""
    booked, ended, record = _ledger.alias(), _ledger.alias(), _records.alias()
    closed = sa.select(ended.c.record_id).where(ended.c.record_id == booked.c.record_id, ended.c.kind != "reserve")
    unfinished = sa.select(record.c.id).where(
        record.c.id == booked.c.record_id, record.c.status.in_(("QUEUED", "PROCESSING"))
    )
    held = sa.select(booked).where(booked.c.kind == "reserve", ~closed.exists(), ~unfinished.exists())
    moment = datetime.now(UTC)
    rows = [dict(row._mapping) for row in op.get_bind().execute(held)]
    back = [
        row | {"kind": "release", "amount": -row["amount"], "day": f"{moment:%Y-%m-%d}", "created_at": moment}
        for row in rows
    ]
    if back:
        op.bulk_insert(_ledger, back)


def _name_days() -> None:
    """Rows of this month name the day of their reservation instead of a window.

    Earlier days count in no window that is to come but the endless one, in which every row counts.
    """
    month = f"{datetime.now(UTC):%Y-%m-01}"
    reserved = _ledger.alias()
    day = (
        sa.select(sa.func.max(reserved.c.day))
        .where(reserved.c.record_id == _ledger.c.record_id, reserved.c.kind == "reserve")
        .scalar_subquery()
    )
    op.execute(
        sa.update(_ledger)
        .where(_ledger.c.day >= month)
        .values(team_window=sa.func.coalesce(day, _ledger.c.day), member_window=sa.func.coalesce(day, _ledger.c.day))
    )


def _count_again() -> None:
    """Every counter becomes the sum of its ledger: changes of the window had made some of them differ."""
    for table, window, whose in (
        (_teams, _ledger.c.team_window, _ledger.c.team_id == _teams.c.id),
        (
            _members,
            _ledger.c.member_window,
            (_ledger.c.team_id == _members.c.team_id) & (_ledger.c.user_id == _members.c.user_id),
        ),
    ):
        label = table.c.window_label
        counts = sa.func.substr(window, 1, sa.func.length(label)) == label
        used = sa.select(sa.func.coalesce(sa.func.sum(_ledger.c.amount), 0)).where(whose, counts).scalar_subquery()
        op.execute(sa.update(table).values(used_credit=used))
