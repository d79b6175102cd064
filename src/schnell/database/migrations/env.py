"""What Alembic runs: the migrations, on the connection in the configuration's attribute `connection`.

A new migration is drafted from the difference between a database and `tables.py` with Alembic's
`command.revision(config, MESSAGE, autogenerate=True)`, with a configuration as in `schnell.database.migration`.
"""

from typing import Any, Literal

from alembic import context

from schnell.database.tables import Timestamp, metadata


def _render(kind: str, value: Any, _imports: Any) -> str | Literal[False]:
    """How a drafted migration writes a column's type; False: as usual."""
    # a migration must not change when `Timestamp` does: it says what the type is in the database
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(value, Timestamp) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_item=_render,
    # `migrate` has begun the one transaction, and commits it
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
