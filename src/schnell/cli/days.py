"""Days and moments as they are typed."""

from datetime import UTC, datetime
from typing import Annotated

import typer


def read_day(text: str | datetime) -> datetime:
    """The first moment of a day such as 2026-01-31, in UTC. Raises typer.BadParameter."""
    # typer gives a default through here, too
    if isinstance(text, datetime):
        return text
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise typer.BadParameter(f"must be a day such as 2026-01-31, got {text!r}") from None


def read_moment(text: str | datetime) -> datetime:
    """A day, or a moment such as 2026-01-31T12:30; in UTC where it names no zone. Raises typer.BadParameter."""
    if isinstance(text, datetime):
        return text
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"must be a day such as 2026-01-31, got {text!r}") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


Day = Annotated[datetime | None, typer.Option(parser=read_day, metavar="DAY", help="A day, such as 2026-11-01 (UTC).")]
