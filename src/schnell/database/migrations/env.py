"""Alembic's entry: run the migrations on the connection that `schnell.database.migration` hands over."""

from typing import Any, Literal

from alembic import context

from schnell.database.tables import Timestamp, metadata


def _render(kind: str, value: Any, _imports: Any) -> str | Literal[False]:
    """A migration must not change when `Timestamp` does: write what it stands for."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(value, Timestamp) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_item=_render,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
