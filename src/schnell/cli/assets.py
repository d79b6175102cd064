"""`schnell assets`: the stored pictures."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from schnell.cli.database import DataDir, open_database
from schnell.cli.output import AsJson, print_json
from schnell.cli.people import here

if TYPE_CHECKING:
    from schnell.database.session import Database

assets_app = typer.Typer(help="Stored pictures.", no_args_is_help=True)


@assets_app.command("prune")
def prune(
    older_than: Annotated[
        float | None, typer.Option(min=0, help="Days; SCHNELL_RETENTION_DAYS if absent, else none by age.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Remove pictures older than some days, and files that no record knows. Records stay."""
    from schnell.bootstrap import build_store, read_settings
    from schnell.generations.recovery import apply_retention, count_expired, find_orphans

    settings = read_settings(data_dir=data_dir)
    days = settings.retention_days if older_than is None else older_than

    async def run() -> dict[str, int]:
        async with open_database(settings) as database:
            store = build_store(settings)
            try:
                removed = await (count_expired(database, days) if dry_run else apply_retention(database, store, days))
                orphans = await find_orphans(database, store)
                await store.delete(() if dry_run else orphans)
                counts = {"removed": removed, "orphans": len(orphans)}
                if not dry_run:
                    await _record(database, counts, days)
            finally:
                await store.close()
        return counts

    counts = asyncio.run(run())
    if as_json:
        print_json(counts)
    else:
        verb = "would remove" if dry_run else "removed"
        typer.echo(f"{verb} {counts['removed']} old pictures and {counts['orphans']} files that no record knew")


async def _record(database: "Database", counts: dict[str, int], days: float | None) -> None:
    """The line of the audit log: what is gone is known only afterwards, so it is no part of the removal itself."""
    from schnell.accounts.audit import record

    details = counts | {"older_than_days": days}
    async with database.write() as connection:
        await record(connection, here(), "picture.pruned", f"{counts['removed']} pictures", details=details)
