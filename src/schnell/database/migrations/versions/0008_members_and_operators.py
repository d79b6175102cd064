"""Operators beside administrators, passwords, OpenID identities, sessions, invites, the audit log, last uses of keys.

Until now the scope `admin` of a key opened every team. Now it means the key's own team, and `operator` the server: keys
that had the one get the other, too, with a note, so that nobody loses what they could do.
"""

from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0006"
branch_labels = None
depends_on = None

_TIME: Final = sa.DateTime(timezone=True)
_keys = sa.table(
    "api_keys",
    *(sa.column(name) for name in ("id", "user_id", "team_id", "prefix", "name", "scopes", "note")),
    *(sa.column(name, _TIME) for name in ("revoked_at", "expires_at")),
)
_members = sa.table("members", *(sa.column(name) for name in ("user_id", "team_id", "status")))
_teams = sa.table("teams", *(sa.column(name) for name in ("id", "status")))
_users = sa.table("users", sa.column("id"), sa.column("operator", sa.Boolean))
_audit = sa.table(
    "audit",
    sa.column("created_at", _TIME),
    *(sa.column(name) for name in ("actor", "via", "team_id", "action", "target", "target_id")),
    sa.column("details", sa.JSON),
)
_NOTE: Final = (
    "made when `admin` meant every team: now `admin` is its own team, and `operator`, which was added, the server. "
    "Make a key without `operator` for those who manage one team"
)


def upgrade() -> None:
    """Add the columns and tables, and give keys with the scope `admin` the scope `operator`."""
    op.add_column("users", sa.Column("operator", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("api_keys", sa.Column("used_at", _TIME, nullable=True))
    op.add_column("api_keys", sa.Column("note", sa.String(length=300), nullable=True))
    op.create_index("ix_api_keys_user", "api_keys", ["user_id"])
    _create_sign_in()
    _create_sessions()
    _create_invites()
    _create_audit()
    _give_operator()


def downgrade() -> None:
    """Drop what was added. `operator` is taken out of keys, whose `admin` then means every team again."""
    connection = op.get_bind()
    for row in connection.execute(sa.select(_keys)).all():
        scopes = [scope for scope in row.scopes.split(",") if scope != "operator"]
        connection.execute(sa.update(_keys).where(_keys.c.id == row.id).values(scopes=",".join(scopes or ["read"])))
    for table in ("audit", "invites", "sessions", "identities", "logins"):
        op.drop_table(table)
    op.drop_index("ix_api_keys_user", "api_keys")
    op.drop_column("api_keys", "note")
    op.drop_column("api_keys", "used_at")
    op.drop_column("users", "operator")


def _create_sign_in() -> None:
    op.create_table(
        "logins",
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("password_hash", sa.String(length=300), nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_logins_user_id_users")),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_logins")),
        sa.UniqueConstraint("name", name=op.f("uq_logins_name")),
    )
    op.create_table(
        "identities",
        sa.Column("issuer", sa.String(length=500), nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("email", sa.String(length=320), nullable=True),
        sa.Column("created_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_identities_user_id_users")),
        sa.PrimaryKeyConstraint("issuer", "subject", name=op.f("pk_identities")),
    )
    op.create_index("ix_identities_user", "identities", ["user_id"])


def _create_sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("team_id", sa.String(length=36), nullable=False),
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("key_id", sa.String(length=36), nullable=True),
        sa.Column("method", sa.String(length=16), nullable=False),
        sa.Column("browser", sa.String(length=100), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_sessions_team_id_teams")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sessions_user_id_users")),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("fk_sessions_key_id_api_keys")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_sessions")),
        sa.UniqueConstraint("id", name=op.f("uq_sessions_id")),
    )
    op.create_index("ix_sessions_user", "sessions", ["user_id"])
    op.create_index("ix_sessions_expires", "sessions", ["expires_at"])


def _create_invites() -> None:
    op.create_table(
        "invites",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("team_id", sa.String(length=36), nullable=False),
        sa.Column("user_id", sa.String(length=36), nullable=True),
        sa.Column("user_name", sa.String(length=200), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("credit_limit", sa.BigInteger(), nullable=True),
        sa.Column("budget_window", sa.String(length=8), nullable=False),
        sa.Column("created_by", sa.String(length=200), nullable=False),
        sa.Column("created_by_id", sa.String(length=36), nullable=True),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("accepted_at", _TIME, nullable=True),
        sa.Column("revoked_at", _TIME, nullable=True),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_invites_team_id_teams")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_invites_user_id_users")),
        sa.ForeignKeyConstraint(["created_by_id"], ["users.id"], name=op.f("fk_invites_created_by_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invites")),
        sa.UniqueConstraint("digest", name=op.f("uq_invites_digest")),
    )
    op.create_index("ix_invites_team", "invites", ["team_id"])


def _create_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("actor_id", sa.String(length=36), nullable=True),
        sa.Column("via", sa.String(length=16), nullable=False),
        sa.Column("team_id", sa.String(length=36), nullable=True),
        sa.Column("action", sa.String(length=40), nullable=False),
        sa.Column("target", sa.String(length=300), nullable=False),
        sa.Column("target_id", sa.String(length=100), nullable=True),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index("ix_audit_team", "audit", ["team_id", "id"])
    op.create_index("ix_audit_created", "audit", ["created_at"])


def _give_operator() -> None:
    connection = op.get_bind()
    # who was shut out must not find themselves an operator when they are let in again
    of_team = sa.select(_members.c.team_id, _members.c.user_id).join(_teams, _teams.c.id == _members.c.team_id)
    query = of_team.where(_members.c.status == "ACTIVE", _teams.c.status == "ACTIVE")
    active = {(each.team_id, each.user_id) for each in connection.execute(query)}
    for row in connection.execute(sa.select(_keys)).all():
        if "admin" not in row.scopes.split(","):
            continue
        changed: dict[str, Any] = {"scopes": f"{row.scopes},operator", "note": _NOTE}
        connection.execute(sa.update(_keys).where(_keys.c.id == row.id).values(changed))
        # a key may no more than its owner: whoever holds one that opened every team is an operator. A key that opens
        # nothing makes nobody anything
        if row.revoked_at is None and not _has_ended(row.expires_at) and (row.team_id, row.user_id) in active:
            connection.execute(sa.update(_users).where(_users.c.id == row.user_id).values(operator=True))
            connection.execute(sa.insert(_audit).values(_entry(row)))


def _has_ended(moment: datetime | None) -> bool:
    # SQLite gives times back without their zone, which is UTC
    return moment is not None and moment.replace(tzinfo=moment.tzinfo or UTC) <= datetime.now(UTC)


def _entry(row: Any) -> dict[str, Any]:
    return {
        "created_at": datetime.now(UTC),
        "actor": "SYSTEM",
        "via": "server",
        "team_id": row.team_id,
        "action": "key.migrated",
        "target": f"{row.name} ({row.prefix}…)",
        "target_id": row.id,
        "details": {"scopes": [row.scopes, f"{row.scopes},operator"]},
    }
