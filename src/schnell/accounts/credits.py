"""The credit ledger: reserve before drawing, then settle or release. Nothing here is ever rewritten.

A member and a team each have a limit. Both counters and the ledger row change in one transaction, so the sum of the
ledger over the current budget window is always the counter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Table, Update, bindparam, case, func, select, update

from schnell.accounts.identity import BudgetWindow, Caller
from schnell.clock import now
from schnell.database.connection import Connection, Prepared
from schnell.database.tables import ledger, members, teams
from schnell.errors import InsufficientCreditsError
from schnell.spec import GenerationSpec

_MEGAPIXEL = 1024 * 1024


@dataclass(frozen=True, slots=True)
class PriceTable:
    """What one picture costs, in whole credits: a base, the drawing, and each LoRA.

    The drawing is priced by megapixels (rounded up to a quarter) times steps, so a ratio does not change the price.
    """

    per_picture: int = 200
    per_megapixel_step: int = 200
    per_lora: int = 200

    def picture(self, spec: GenerationSpec) -> int:
        """The price of one output of `spec`."""
        quarters = ceil(4 * spec.size.width * spec.size.height / _MEGAPIXEL)
        drawing = ceil(self.per_megapixel_step * quarters * spec.steps / 4)
        return self.per_picture + drawing + self.per_lora * len(spec.loras)

    def total(self, spec: GenerationSpec) -> int:
        """The price of all outputs of `spec`."""
        return self.picture(spec) * spec.num_outputs


@dataclass(frozen=True, slots=True)
class Reservation:
    """Credits set aside for one record, and the budget windows they count in."""

    record_id: str
    team_id: str
    user_id: str
    key_id: str | None
    amount: int
    team_window: str
    member_window: str


@dataclass(frozen=True, slots=True)
class Imbalance:
    """A counter that differs from the sum of its ledger."""

    team_id: str
    user_id: str | None
    counter: int
    ledger: int


async def reserve(connection: Connection, caller: Caller, record_id: str, amount: int) -> Reservation:
    """Set `amount` credits aside, or refuse.

    Raises:
        InsufficientCreditsError: with the cost and what is left, when the member's or the team's limit is in the way.
    """
    values = {"of_team": caller.team_id, "of_user": caller.user_id, "amount": amount} | _window_labels()
    of_member = (await _TAKE_OF_MEMBER.run(connection, values)).first
    if of_member is None:
        raise await _refusal(connection, members, values, f"member {caller.user_name}")
    of_team = (await _TAKE_OF_TEAM.run(connection, values)).first
    if of_team is None:
        raise await _refusal(connection, teams, values, "Team")
    windows = of_team.window_label, of_member.window_label
    reservation = Reservation(record_id, caller.team_id, caller.user_id, caller.key_id, amount, *windows)
    await _write(connection, reservation, "reserve", amount)
    return reservation


async def settle(connection: Connection, reservation: Reservation, charged: int, pictures: int) -> None:
    """Keep `charged` of the reservation for `pictures` pictures and give the rest back."""
    await _give_back(connection, reservation, reservation.amount - charged)
    await _write(connection, reservation, "settle", charged - reservation.amount, pictures)


async def release(connection: Connection, reservation: Reservation) -> None:
    """Give the whole reservation back."""
    await _give_back(connection, reservation, reservation.amount)
    await _write(connection, reservation, "release", -reservation.amount)


async def find_reservation(connection: Connection, record_id: str) -> Reservation | None:
    """What was set aside for a record, as after a crash only the ledger knows."""
    query = select(ledger).where(ledger.c.record_id == record_id, ledger.c.kind == "reserve")
    row = (await connection.execute(query)).first()
    if row is None:
        return None
    return Reservation(record_id, row.team_id, row.user_id, row.key_id, row.amount, row.team_window, row.member_window)


async def audit(connection: Connection) -> list[Imbalance]:
    """Every counter that is not the sum of its ledger: empty, unless something is broken."""
    total = func.coalesce(func.sum(ledger.c.amount), 0)
    by_team = (
        select(teams.c.id, teams.c.used_credit, total)
        .join(ledger, (ledger.c.team_id == teams.c.id) & (ledger.c.team_window == teams.c.window_label), isouter=True)
        .group_by(teams.c.id, teams.c.used_credit)
    )
    own = (
        (ledger.c.team_id == members.c.team_id)
        & (ledger.c.user_id == members.c.user_id)
        & (ledger.c.member_window == members.c.window_label)
    )
    by_member = (
        select(members.c.team_id, members.c.user_id, members.c.used_credit, total)
        .join(ledger, own, isouter=True)
        .group_by(members.c.team_id, members.c.user_id, members.c.used_credit)
    )
    found = [Imbalance(team, None, used, summed) for team, used, summed in await connection.execute(by_team)]
    found += [Imbalance(team, user, used, sum_) for team, user, used, sum_ in await connection.execute(by_member)]
    return [each for each in found if each.counter != each.ledger]


def window_label(window: BudgetWindow, moment: datetime) -> str:
    """The name of the budget window that `moment` lies in: a day, a month, or nothing."""
    return {"day": f"{moment:%Y-%m-%d}", "month": f"{moment:%Y-%m}", "none": ""}[window]


def effective_use(row: Row[Any]) -> int:
    """What a team's or member's row has used in the window that is now (a new window has used nothing)."""
    return int(row.used_credit) if row.window_label == window_label(row.budget_window, now()) else 0


def _window_labels() -> dict[str, str]:
    moment = now()
    return {"this_day": window_label("day", moment), "this_month": window_label("month", moment)}


def _whose(table: Table) -> ColumnElement[bool]:
    if table is teams:
        return teams.c.id == bindparam("of_team")
    return (members.c.team_id == bindparam("of_team")) & (members.c.user_id == bindparam("of_user"))


def _take(table: Table) -> Update:
    """One atomic update that gives the window it counts in, or no row where the limit forbids it."""
    window = table.c.budget_window
    current = case((window == "day", bindparam("this_day")), (window == "month", bindparam("this_month")), else_="")
    used = case((table.c.window_label == current, table.c.used_credit), else_=0) + bindparam("amount")
    return (
        update(table)
        .where(_whose(table), used <= table.c.credit_limit)
        .values(used_credit=used, window_label=current)
        .returning(table.c.window_label)
    )


def _give(table: Table) -> Update:
    # a window that has ended is closed: what comes back does not count in the next one
    return (
        update(table)
        .where(_whose(table), table.c.window_label == bindparam("in_window"))
        .values(used_credit=table.c.used_credit - bindparam("amount"))
    )


_TAKE_OF_MEMBER: Final = Prepared(_take(members))
_TAKE_OF_TEAM: Final = Prepared(_take(teams))
_GIVE_TO_MEMBER: Final = Prepared(_give(members))
_GIVE_TO_TEAM: Final = Prepared(_give(teams))
_BOOK: Final = Prepared(ledger.insert())


async def _refusal(
    connection: Connection, table: Table, values: Mapping[str, Any], who: str
) -> InsufficientCreditsError:
    row = (await connection.execute(select(table).where(_whose(table)), values)).one()
    left = max(0, row.credit_limit - effective_use(row))
    return InsufficientCreditsError(
        f"The feature requires {values['amount']} credits, but the {who} only has {left} credits"
    )


async def _give_back(connection: Connection, reservation: Reservation, amount: int) -> None:
    if not amount:
        return
    values = {"of_team": reservation.team_id, "of_user": reservation.user_id, "amount": amount}
    await _GIVE_TO_MEMBER.run(connection, values | {"in_window": reservation.member_window})
    await _GIVE_TO_TEAM.run(connection, values | {"in_window": reservation.team_window})


async def _write(connection: Connection, reservation: Reservation, kind: str, amount: int, pictures: int = 0) -> None:
    moment = now()
    row = {
        "team_id": reservation.team_id,
        "user_id": reservation.user_id,
        "key_id": reservation.key_id,
        "record_id": reservation.record_id,
        "kind": kind,
        "amount": amount,
        "team_window": reservation.team_window,
        "member_window": reservation.member_window,
        "pictures": pictures,
        "day": f"{moment:%Y-%m-%d}",
        "created_at": moment,
    }
    await _BOOK.run(connection, row)
