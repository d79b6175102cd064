"""Credits: what a picture costs, and the ledger in which a generation's cost is reserved, then settled or released.

A member and a team have a limit and a counter each, for the current budget window (a day, a month, or for ever). Every
change of the counters writes a row of the ledger in the same transaction, and no row of the ledger is ever changed: the
sum of its amounts over the current window is the counter. See docs/decisions/0012.

A window's label is the beginning of the days that lie in it: `2026-03-14` is a day, `2026-03` a month, and the empty
label, of a budget without a window, begins every day. Every row of the ledger names the day of its reservation, so it
counts in a window if its day begins with the window's label, and a budget whose window changes can be counted again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from math import ceil
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, String, Table, Update, and_, bindparam, case, func, or_, select, update

from schnell.accounts.identity import BudgetWindow, Caller
from schnell.clock import now
from schnell.database.connection import Connection, Prepared
from schnell.database.tables import ledger, members, teams
from schnell.errors import InsufficientCreditsError, UnauthorizedError
from schnell.spec import GenerationSpec

_MEGAPIXEL: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class PriceTable:
    """What one picture costs, in whole credits: a base price, its size times its steps, and each LoRA.

    The size counts in megapixels of 1024 x 1024 pixels, rounded up to a quarter: the aspect ratio does not change the
    price.
    """

    per_picture: int = 200
    per_megapixel_step: int = 200
    per_lora: int = 200

    def picture(self, spec: GenerationSpec) -> int:
        """The price of one picture of `spec`, in credits."""
        quarters = ceil(4 * spec.size.width * spec.size.height / _MEGAPIXEL)
        drawing = ceil(self.per_megapixel_step * quarters * spec.steps / 4)
        return self.per_picture + drawing + self.per_lora * len(spec.loras)

    def total(self, spec: GenerationSpec) -> int:
        """The price of all pictures of `spec`, in credits."""
        return self.picture(spec) * spec.num_outputs


@dataclass(frozen=True, slots=True)
class Reservation:
    """Credits reserved for one record, and the day (or window) of each budget that they count in."""

    record_id: str
    team_id: str
    user_id: str
    key_id: str | None
    amount: int
    team_window: str
    member_window: str


async def reserve(connection: Connection, caller: Caller, record_id: str, amount: int) -> Reservation:
    """Reserve `amount` credits for a record.

    Raises:
        InsufficientCreditsError: with the cost and what is left, when the member's or the team's limit would be passed.
            The transaction must be rolled back: the member's counter may have been raised already.
        UnauthorizedError: the caller's membership or team is gone since their key was looked up.
    """
    moment = now()
    of_team = {"of_team": caller.team_id, "amount": amount, **_window_labels(moment)}
    of_member = of_team | {"of_user": caller.user_id}
    # the member's row before the team's, here and in `_give_back`: PostgreSQL locks a row that is updated until the end
    # of the transaction, and two transactions that lock in different orders can wait for each other for ever
    member = (await _TAKE_FROM_MEMBER.run(connection, of_member)).first
    if member is None:
        raise await _refusal(connection, members, of_member, f"member {caller.user_name}")
    team = (await _TAKE_FROM_TEAM.run(connection, of_team)).first
    if team is None:
        raise await _refusal(connection, teams, of_team, "Team")
    # the ledger's row last: only the updates say which windows the amount was counted in
    days = _day_within(team.window_label, moment), _day_within(member.window_label, moment)
    reservation = Reservation(record_id, caller.team_id, caller.user_id, caller.key_id, amount, *days)
    await _append(connection, reservation, "reserve", amount)
    return reservation


async def check_credits(connection: Connection, caller: Caller, amount: int) -> None:
    """Refuse a caller who could not pay `amount`; nothing is reserved. For work that is free for those who pay else.

    Raises:
        InsufficientCreditsError, UnauthorizedError: as `reserve`.
    """
    values = {"of_team": caller.team_id, "of_user": caller.user_id, "amount": amount}
    for table, who in ((members, f"member {caller.user_name}"), (teams, "Team")):
        row = (await connection.execute(select(table).where(_owner(table)), values)).first()
        if row is None or row.credit_limit - effective_use(row) < amount:
            raise await _refusal(connection, table, values, who)


async def settle(connection: Connection, reservation: Reservation, charged: int, pictures: int) -> None:
    """Charge `charged` credits of the reservation for `pictures` pictures and give the rest back."""
    await _give_back(connection, reservation, reservation.amount - charged)
    # the reservation's own row stays; with this one, the two add up to what was charged
    await _append(connection, reservation, "settle", charged - reservation.amount, pictures)


async def release(connection: Connection, reservation: Reservation) -> None:
    """Give the whole reservation back: the generation failed, or was cancelled."""
    await _give_back(connection, reservation, reservation.amount)
    await _append(connection, reservation, "release", -reservation.amount)


async def find_reservation(connection: Connection, record_id: str) -> Reservation | None:
    """What was reserved for a record, or None. After a crash, only the ledger knows."""
    query = select(ledger).where(ledger.c.record_id == record_id, ledger.c.kind == "reserve")
    row = (await connection.execute(query)).first()
    if row is None:
        return None
    return Reservation(record_id, row.team_id, row.user_id, row.key_id, row.amount, row.team_window, row.member_window)


@dataclass(frozen=True, slots=True)
class Imbalance:
    """A counter that differs from the sum of its ledger. `user_id` None: the team's own counter."""

    team_id: str
    user_id: str | None
    counter: int
    ledger: int


async def count_again(connection: Connection, team_id: str, user_id: str | None = None) -> None:
    """Set the counter of a team, or of one of its members, to what the ledger says of the window that is current now.

    To be called in the transaction that has just written the row: the row's lock keeps other movements out until both
    the new window and its sum are there.
    """
    table, day = (teams, ledger.c.team_window) if user_id is None else (members, ledger.c.member_window)
    whose = {"of_team": team_id} | ({} if user_id is None else {"of_user": user_id})
    row = (await connection.execute(select(table.c.budget_window).where(_owner(table)), whose)).first()
    if row is None:
        return
    label = window_label(row.budget_window, now())
    booked = (ledger.c.team_id == team_id) & day.startswith(label, autoescape=True)
    if user_id is not None:
        booked &= ledger.c.user_id == user_id
    total = (await connection.execute(select(func.coalesce(func.sum(ledger.c.amount), 0)).where(booked))).scalar_one()
    await connection.execute(update(table).where(_owner(table)).values(used_credit=total, window_label=label), whose)


async def audit(connection: Connection) -> list[Imbalance]:
    """Every counter that is not the sum of its ledger in its current window: none, unless something is broken."""
    total = func.coalesce(func.sum(ledger.c.amount), 0)
    of_team = (ledger.c.team_id == teams.c.id) & _begins_with(ledger.c.team_window, teams.c.window_label)
    by_team = (
        select(teams.c.id, teams.c.used_credit, total)
        .join(ledger, of_team, isouter=True)
        .group_by(teams.c.id, teams.c.used_credit)
    )
    own = (
        (ledger.c.team_id == members.c.team_id)
        & (ledger.c.user_id == members.c.user_id)
        & _begins_with(ledger.c.member_window, members.c.window_label)
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
    """The name of the budget window that `moment` lies in: `2026-01-31`, `2026-01`, or `""` where it never ends."""
    return {"day": f"{moment:%Y-%m-%d}", "month": f"{moment:%Y-%m}", "none": ""}[window]


def effective_use(row: Row[Any]) -> int:
    """What a team's or member's row has used in the present window, in credits.

    A counter keeps its window's label until the next reservation, so it may hold the use of a window that has ended.
    """
    labels = _window_labels(now())
    window = row.budget_window
    current = {"": "none", labels["this_day"]: "day", labels["next_day"]: "day"}
    current |= {labels["this_month"]: "month", labels["next_month"]: "month"}
    return int(row.used_credit) if current.get(row.window_label) == window else 0


def _window_labels(moment: datetime) -> Mapping[str, str]:
    return _labels_of_day(moment.date())


@lru_cache(maxsize=2)
def _labels_of_day(day: date) -> Mapping[str, str]:
    # formatting dates takes longer than the reservation's own statements, and the labels stay for a day
    moment = datetime(day.year, day.month, day.day, tzinfo=UTC)
    tomorrow, soon = moment + timedelta(days=1), moment.replace(day=1) + timedelta(days=32)
    return {
        "this_day": window_label("day", moment),
        "next_day": window_label("day", tomorrow),
        "this_month": window_label("month", moment),
        "next_month": window_label("month", soon),
    }


def _day_within(label: str, moment: datetime) -> str:
    """The day that a reservation counts in: today, or the window itself where that began on another server's clock."""
    today = _window_labels(moment)["this_day"]
    return today if today.startswith(label) else label


def _owner(table: Table) -> ColumnElement[bool]:
    if table is teams:
        return teams.c.id == bindparam("of_team")
    return (members.c.team_id == bindparam("of_team")) & (members.c.user_id == bindparam("of_user"))


def _begins_with(day: ColumnElement[str], label: ColumnElement[str]) -> ColumnElement[bool]:
    return func.substr(day, 1, func.length(label)) == label


def _current_label(table: Table) -> ColumnElement[str]:
    """The window's label at the present moment, in SQL.

    It never goes back by one: another server's clock may have passed midnight already, and two labels in turns would
    each begin at nothing used.
    """
    window, label = table.c.budget_window, table.c.window_label
    this_day, this_month = bindparam("this_day", type_=String), bindparam("this_month", type_=String)
    is_ahead = or_(
        and_(window == "day", label == bindparam("next_day", type_=String)),
        and_(window == "month", label == bindparam("next_month", type_=String)),
    )
    return case((is_ahead, label), (window == "day", this_day), (window == "month", this_month), else_="")


def _take_from(table: Table) -> Update:
    """Raise a counter if its limit allows it; the first use in a new window starts from zero.

    One statement that checks and writes needs no SELECT … FOR UPDATE: where two run at once, the second waits for the
    row and checks the limit again on what the first has left.
    """
    current = _current_label(table)
    used = case((table.c.window_label == current, table.c.used_credit), else_=0) + bindparam("amount")
    return (
        update(table)
        .where(_owner(table), used <= table.c.credit_limit)
        .values(used_credit=used, window_label=current)
        .returning(table.c.window_label)
    )


def _give_back_to(table: Table) -> Update:
    # a window that has ended is closed: what comes back does not count in the next one. The row is written all the
    # same: its lock lets nobody count a new window's sum between this movement and its row of the ledger
    counts = _begins_with(bindparam("in_window", type_=String), table.c.window_label)
    back = case((counts, bindparam("amount")), else_=0)
    return update(table).where(_owner(table)).values(used_credit=table.c.used_credit - back)


_TAKE_FROM_MEMBER: Final = Prepared(_take_from(members))
_TAKE_FROM_TEAM: Final = Prepared(_take_from(teams))
_GIVE_BACK_TO_MEMBER: Final = Prepared(_give_back_to(members))
_GIVE_BACK_TO_TEAM: Final = Prepared(_give_back_to(teams))
# without `id`: the database counts it up
_APPEND: Final = Prepared(ledger.insert(), sets=[column.name for column in ledger.c if column is not ledger.c.id])


async def _refusal(
    connection: Connection, table: Table, values: Mapping[str, Any], who: str
) -> InsufficientCreditsError | UnauthorizedError:
    row = (await connection.execute(select(table).where(_owner(table)), values)).first()
    if row is None:
        return UnauthorizedError("API Key is not active. Please contact your team administrator to be unblocked")
    left = max(0, row.credit_limit - effective_use(row))
    return InsufficientCreditsError(
        f"The feature requires {values['amount']} credits, but the {who} only has {left} credits"
    )


async def _give_back(connection: Connection, reservation: Reservation, amount: int) -> None:
    # most pictures cost what was reserved: two statements fewer for them
    if not amount:
        return
    values = {"of_team": reservation.team_id, "amount": amount}
    of_member = values | {"of_user": reservation.user_id, "in_window": reservation.member_window}
    await _GIVE_BACK_TO_MEMBER.run(connection, of_member)
    await _GIVE_BACK_TO_TEAM.run(connection, values | {"in_window": reservation.team_window})


async def _append(connection: Connection, reservation: Reservation, kind: str, amount: int, pictures: int = 0) -> None:
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
        "day": _window_labels(moment)["this_day"],
        "created_at": moment,
    }
    await _APPEND.run(connection, row)
