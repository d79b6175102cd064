"""The real ledger for simulations: teams with budgets, and the statements that reserve, settle and release.

A transaction each, as a gateway has them, on a SQLite file: in this process, so that processor time can be measured.
"""

from collections import Counter
from pathlib import Path
from typing import Final

from sqlalchemy import func, select

from schnell.accounts.credits import PriceTable, Reservation, audit, release, reserve, settle
from schnell.accounts.identity import DEFAULT_CREDIT_LIMIT, Caller
from schnell.accounts.teams import create_team, list_members
from schnell.database.migration import migrate
from schnell.database.session import Database
from schnell.database.tables import ledger, teams
from schnell.errors import InsufficientCreditsError
from schnell.spec import Job

#: One of so many jobs fails and costs nothing, one of so many has a flagged picture and costs a part.
_FAILS: Final = 97
_COSTS_LESS: Final = 89


class SimulatedLedger:
    """Teams `t0`, `t1`, … of one member each. Some (`poor`) can pay only so many pictures; all others any number."""

    def __init__(self, folder: Path, poor: dict[str, int]) -> None:
        self._database = Database(f"sqlite:{folder / 'ledger.db'}")
        self._poor = poor
        self._prices = PriceTable()
        self._callers: dict[str, Caller] = {}
        self._closed = 0
        #: What should have been charged, by team: kept beside the database.
        self.charged: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    async def open(self, count: int, price: int) -> None:
        await migrate(self._database)
        async with self._database.write() as connection:
            for name in (f"t{n}" for n in range(count)):
                limit = self._poor[name] * price if name in self._poor else DEFAULT_CREDIT_LIMIT
                made = await create_team(connection, name, credit_limit=limit)
                [member] = await list_members(connection, made.id)
                self._callers[name] = Caller(made.id, member.user_id, name, None, "ADMIN", ("generate",))

    def price_of(self, job: Job) -> int:
        return self._prices.total(job.spec)

    async def accept(self, job: Job) -> Reservation | None:
        """Reserve what a job costs; None where its team cannot pay."""
        try:
            async with self._database.write() as connection:
                return await reserve(connection, self._callers[job.team_id], job.id, self.price_of(job))
        except InsufficientCreditsError:
            self.refused[job.team_id] += 1
            return None

    async def close(self, reservation: Reservation) -> None:
        """A job ends: most are charged, some cost less or nothing."""
        self._closed += 1
        fails = self._closed % _FAILS == 0
        charged = 0 if fails else reservation.amount // (2 if self._closed % _COSTS_LESS == 0 else 1)
        async with self._database.write() as connection:
            if fails:
                await release(connection, reservation)
            else:
                await settle(connection, reservation, charged, 1)
        self.charged[reservation.team_id] += charged

    async def check(self) -> None:
        """The counters are the ledger's sums and what was charged, and each reservation has one end."""
        async with self._database.read() as connection:
            assert await audit(connection) == []
            used = dict(map(tuple, await connection.execute(select(teams.c.id, teams.c.used_credit))))
            kinds = dict(
                map(tuple, await connection.execute(select(ledger.c.kind, func.count()).group_by(ledger.c.kind)))
            )
        assert {team: credits_ for team, credits_ in used.items() if credits_} == +self.charged
        assert kinds["reserve"] == kinds["settle"] + kinds["release"] == self._closed

    async def shut(self) -> None:
        await self._database.close()
