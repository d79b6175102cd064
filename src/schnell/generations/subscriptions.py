"""Who is still to be told how a generation ended. It is kept, so that a restart of the server loses nobody."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, select, update

from schnell.accounts.identity import (new_id, now)
from schnell.database.session import Database
from schnell.database.tables import webhooks


@dataclass(frozen=True, slots=True)
class Subscription:
    """An address that hears of the end of a record. `tries` were made so far; the next is due at `due_at`."""

    id: str
    record_id: str
    team_id: str
    url: str
    tries: int
    due_at: datetime


class Subscriptions:
    """The subscriptions of one server, in SQL."""

    def __init__(self, database: Database, instance: str) -> None:
        self._database = database
        self._instance = instance

    async def add(self, record_id: str, team_id: str, url: str) -> Subscription:
        """Keep a new one."""
        added = Subscription(new_id(), record_id, team_id, url, tries=0, due_at=now())
        values = {name: getattr(added, name) for name in Subscription.__slots__}
        async with self._database.write() as connection:
            await connection.execute(webhooks.insert().values(values | {"instance": self._instance}))
        return added

    async def pending(self) -> list[Subscription]:
        """Every one that is neither delivered nor given up, the longest due first."""
        query = select(webhooks).where(webhooks.c.instance == self._instance).order_by(webhooks.c.due_at)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [Subscription(**{name: getattr(row, name) for name in Subscription.__slots__}) for row in rows]

    async def postpone(self, subscription: Subscription, tries: int, due_at: datetime) -> None:
        """Note that it has been tried, and when to try again."""
        statement = update(webhooks).where(webhooks.c.id == subscription.id)
        async with self._database.write() as connection:
            await connection.execute(statement.values(tries=tries, due_at=due_at))

    async def end(self, subscription: Subscription) -> None:
        """Delivered, or given up."""
        async with self._database.write() as connection:
            await connection.execute(delete(webhooks).where(webhooks.c.id == subscription.id))
