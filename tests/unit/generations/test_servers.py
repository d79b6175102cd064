from pathlib import Path

import pytest
from sqlalchemy import select, update

from leftovers import age_lease, start_lease
from schnell.database.session import Database
from schnell.database.tables import servers
from schnell.file_locks import LockedFiles
from schnell.generations.servers import ServerLease


async def dead_among(database: Database, judge: ServerLease, *owners: str) -> set[str]:
    async with database.read() as connection:
        return set(await judge.find_dead(connection, owners))


async def rows_of(database: Database) -> set[str]:
    async with database.read() as connection:
        return set((await connection.execute(select(servers.c.id))).scalars())


async def test_servers_that_renew_their_leases_live_also_under_one_name(database: Database, tmp_path: Path) -> None:
    one = await start_lease(database, tmp_path / "a", label="main")
    other = await start_lease(database, tmp_path / "b", label="main")
    await age_lease(database, one, held=3600)
    assert await dead_among(database, one, one.id, other.id) == set()
    assert await dead_among(database, other, one.id, other.id) == set()


async def test_who_has_no_lease_is_dead(database: Database, tmp_path: Path) -> None:
    judge = await start_lease(database, tmp_path)
    assert await dead_among(database, judge, "main", "a server of long ago", judge.id) == {
        "main",
        "a server of long ago",
    }


async def test_a_lease_that_was_given_back_is_none(database: Database, tmp_path: Path) -> None:
    judge, stopped = await start_lease(database, tmp_path / "a"), await start_lease(database, tmp_path / "b")
    await stopped.end()
    assert await dead_among(database, judge, stopped.id) == {stopped.id}
    assert await rows_of(database) == {judge.id}


async def test_a_lease_that_has_run_out_is_judged_by_who_has_held_one_for_a_while(
    database: Database, tmp_path: Path
) -> None:
    judge, silent = await start_lease(database, tmp_path / "a"), await start_lease(database, tmp_path / "b")
    await age_lease(database, silent, expired=1)
    assert await dead_among(database, judge, silent.id) == set()
    await age_lease(database, judge, held=judge.seconds / 4)
    assert await dead_among(database, judge, silent.id) == {silent.id}


async def test_after_an_outage_that_was_longer_than_every_lease_nobody_takes_the_others_for_dead(
    database: Database, tmp_path: Path
) -> None:
    one, other = await start_lease(database, tmp_path / "a"), await start_lease(database, tmp_path / "b")
    for lease in (one, other):
        await age_lease(database, lease, held=3600, expired=300)
    assert await dead_among(database, one, other.id) == set()
    await one.renew()
    assert await dead_among(database, one, other.id) == set()
    await one.remove_dead()
    await other.renew()
    await age_lease(database, one, held=3600)
    assert await dead_among(database, one, other.id) == set()
    assert await rows_of(database) == {one.id, other.id}


async def test_a_lease_that_is_renewed_in_time_is_held_without_a_break(database: Database, tmp_path: Path) -> None:
    judge, silent = await start_lease(database, tmp_path / "a"), await start_lease(database, tmp_path / "b")
    await age_lease(database, judge, held=3600)
    await judge.renew()
    await age_lease(database, silent, expired=1)
    assert await dead_among(database, judge, silent.id) == {silent.id}


async def test_a_server_whose_lease_was_taken_away_takes_it_anew(database: Database, tmp_path: Path) -> None:
    judge, paused = await start_lease(database, tmp_path / "a"), await start_lease(database, tmp_path / "b")
    await age_lease(database, judge, held=3600)
    await age_lease(database, paused, expired=1)
    await judge.remove_dead()
    assert await rows_of(database) == {judge.id}
    await paused.renew()
    assert await rows_of(database) == {judge.id, paused.id}
    assert await dead_among(database, judge, paused.id) == set()


async def test_a_process_that_ended_on_this_machine_is_known_to_be_dead_at_once(
    database: Database, tmp_path: Path
) -> None:
    killed = await start_lease(database, tmp_path)
    judge = await start_lease(database, tmp_path)
    assert await dead_among(database, judge, killed.id) == set()
    killed._files._own.release()  # type: ignore[union-attr]  # what the kernel does when a process ends
    assert await dead_among(database, judge, killed.id) == {killed.id}
    await judge.remove_dead()
    assert await rows_of(database) == {judge.id}
    assert [path.stem for path in (tmp_path / "servers").iterdir()] == [judge.id]


async def test_a_copy_of_a_data_folder_on_another_machine_proves_nothing(database: Database, tmp_path: Path) -> None:
    living, judge = await start_lease(database, tmp_path / "a"), await start_lease(database, tmp_path / "b")
    (tmp_path / "b" / "servers" / f"{living.id}.lock").touch()
    async with database.write() as connection:
        await connection.execute(update(servers).where(servers.c.id == living.id).values(boot="another machine's"))
    assert await dead_among(database, judge, living.id) == set()


async def test_a_folder_without_locks_keeps_nobody_from_holding_a_lease(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    lease = ServerLease(database, LockedFiles(tmp_path / "file"))
    await lease.start()
    assert "wait until its lease has run out" in caplog.text
    assert await rows_of(database) == {lease.id}


async def test_a_server_that_is_alone_writes_nothing_and_takes_every_other_for_dead(
    database: Database, tmp_path: Path
) -> None:
    lease = await start_lease(database, tmp_path, alone=True)
    await lease.renew()
    assert await rows_of(database) == set()
    assert await dead_among(database, lease, "main", lease.id) == {"main"}
    async with database.read() as connection:
        assert await lease.list_live(connection) == {lease.id}
    await lease.end()


async def test_a_row_is_removed_only_as_long_as_its_lease_has_run_out(database: Database, tmp_path: Path) -> None:
    judge, paused = await start_lease(database, tmp_path / "a"), await start_lease(database, tmp_path / "b")
    await age_lease(database, judge, held=3600)
    for _ in range(5):
        await age_lease(database, paused, expired=1)
        await paused.renew()
        await judge.remove_dead()
        assert await rows_of(database) == {judge.id, paused.id}
