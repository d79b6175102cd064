"""Rates that several servers count together, in PostgreSQL: one row for each key and rate, one statement a request.

The window is cut into parts, and the row holds how many requests fell into each of the newest ones: an array that is
shifted as the time goes on. A part that has begun to leave the window counts whole, so no more than the rate is ever
granted in any of its periods; a request counts for up to one part longer. Times are of the database's clock, which all
servers share.
"""

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Final

from limits import RateLimitItem
from sqlalchemy import Row, text

from schnell.accounts.rates import Counted
from schnell.database.connection import Connection
from schnell.database.session import Database

#: Into how many parts a window is cut. One more is kept: the one that is leaving.
_PARTS: Final = 60
_KEPT: Final = _PARTS + 1
_MOMENT: Final = "coalesce(CAST(:moment AS float8), CAST(extract(epoch FROM clock_timestamp()) AS float8))"
#: `quick`: a commit that waited for the disk would hold the row meanwhile, and a count that a crash of the database
#: loses costs nobody anything. `shift`: by how many parts the row is older than now.
_HIT: Final = text(f"""
    WITH quick AS (SELECT set_config('synchronous_commit', 'off', true)),
    clock AS (SELECT {_MOMENT} AS moment FROM quick)
    INSERT INTO rate_counts AS held (who, rate, part, counts, ends_at)
    SELECT :who, :rate, floor(moment / :width), ARRAY[1] || array_fill(0, ARRAY[{_PARTS}]),
        to_timestamp(moment + :keep)
    FROM clock
    ON CONFLICT (who, rate) DO UPDATE SET
        part = greatest(held.part, excluded.part),
        counts = CASE WHEN excluded.part > held.part
            THEN (ARRAY[1] || array_fill(0, ARRAY[CAST(least(excluded.part - held.part, {_KEPT}) - 1 AS int)])
                || held.counts)[1:{_KEPT}]
            ELSE (held.counts[1] + 1) || held.counts[2:{_KEPT}] END,
        ends_at = greatest(held.ends_at, excluded.ends_at)
    WHERE (SELECT coalesce(sum(hits), 0) < :amount FROM unnest(held.counts[
        1:CAST({_KEPT} - least(greatest(excluded.part - held.part, 0), {_KEPT}) AS int)]) AS hits)
    RETURNING part, counts, {_MOMENT} AS moment
""")  # noqa: S608 - built of constants
_LOOK: Final = text(f"SELECT part, counts, {_MOMENT} AS moment FROM rate_counts WHERE who = :who AND rate = :rate")  # noqa: S608
_TAKE_BACK: Final = text("""
    UPDATE rate_counts SET counts[CAST(1 + part - :part AS int)] = counts[CAST(1 + part - :part AS int)] - 1
    WHERE who = :who AND rate = :rate AND counts[CAST(1 + part - :part AS int)] > 0
""")
_FORGET: Final = text(f"DELETE FROM rate_counts WHERE ends_at < to_timestamp({_MOMENT})")  # noqa: S608


class SharedCounter:
    """Counts hits in a PostgreSQL database. `clock` gives the present for tests (None: the database's clock).

    Methods raise DatabaseUnavailableError, too.
    """

    def __init__(self, database: Database, clock: Callable[[], float | None] = lambda: None) -> None:
        self._database = database
        self._clock = clock

    async def hit(self, rate: RateLimitItem, who: str) -> Counted:
        """Count a hit, if there is room for it. Hits of one `who` take turns for as long as one statement takes."""
        width = rate.get_expiry() / _PARTS
        if rate.amount < 1:
            return Counted(granted=False, remaining=0, reset_after=rate.get_expiry())
        values = _name(rate, who) | {"moment": self._clock()}
        more = {"width": width, "keep": float(rate.get_expiry() + width), "amount": rate.amount}
        async with self._database.write() as connection:
            granted = (await connection.execute(_HIT, values | more)).first()
            row = granted or await self._look(connection, values)
        if row is None:
            # it was forgotten between the two statements, so that there is room by the next request
            return Counted(granted=False, remaining=0, reset_after=width)
        left = max(0, rate.amount - sum(row.counts)) if granted else 0
        # the newest part is where the hit was counted
        return Counted(granted is not None, left, _seconds_to_next(row, width), part=row.part)

    async def begin_try(self, rate: RateLimitItem, who: str) -> Counted:
        """Count a hit; those whose tries are under way count as any."""
        return await self.hit(rate, who)

    async def end_try(self, rate: RateLimitItem, who: str, begun: Counted, *, stays: bool) -> None:
        """Take a hit back, unless it stays."""
        if stays:
            return
        async with self._database.write() as connection:
            await connection.execute(_TAKE_BACK, _name(rate, who) | {"part": begun.part})

    async def forget_old(self) -> None:
        """Delete the rows of those who have asked nothing for a whole window."""
        async with self._database.write() as connection:
            await connection.execute(_FORGET, {"moment": self._clock()})

    async def _look(self, connection: Connection, values: Mapping[str, Any]) -> Row[Any] | None:
        return (await connection.execute(_LOOK, values)).first()


def _name(rate: RateLimitItem, who: str) -> dict[str, Any]:
    """A row's key. Names and addresses of people who may have no account here are not written down as such."""
    return {"who": sha256(who.encode()).hexdigest(), "rate": str(rate)}


def _seconds_to_next(row: Row[Any], width: float) -> float:
    """The seconds until the oldest part that holds hits has left the window."""
    ends = ((row.part - place + _KEPT) * width - row.moment for place, hits in enumerate(row.counts) if hits)
    # parts of a row that nobody has shifted lately may have left the window already
    return float(min((end for end in ends if end > 0), default=width))
