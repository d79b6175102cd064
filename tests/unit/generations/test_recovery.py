import asyncio
from pathlib import Path

import pytest
from sqlalchemy import select, update

from leftovers import (
    COST,
    age_lease,
    as_success,
    leave_unfinished,
    make_caller,
    movements,
    picture_states,
    start_lease,
    status_of,
    store_in,
    used_credits,
)
from schnell.accounts.credits import find_reservation, settle
from schnell.database.session import Database
from schnell.database.tables import images, records, webhooks
from schnell.errors import AssetError, GenerationCancelledError, NotFoundError
from schnell.generations import Admission, History, Running
from schnell.generations.records import finish_record
from schnell.generations.recovery import Recovery, heartbeat, reconcile, remove_images
from schnell.generations.servers import ServerLease
from schnell.generations.webhooks import Subscriptions
from schnell.spec import QueueEstimate


def nothing_under_way(_: str) -> bool:
    return False


async def put_right(database: Database, folder: Path, lease: ServerLease) -> Recovery:
    return await reconcile(database, store_in(folder), lease, nothing_under_way)


async def test_what_a_dead_server_left_in_between_fails_without_charge_and_again_changes_nothing(
    database: Database, tmp_path: Path
) -> None:
    caller = await make_caller(database)
    left = [await leave_unfinished(database, caller, "main") for _ in range(3)]
    store = store_in(tmp_path)
    await store.put(left[0].images[0].key, b"half of it", "image/webp")
    lease = await start_lease(database, tmp_path)
    assert await put_right(database, tmp_path, lease) == Recovery(3, 6)
    assert {await status_of(database, each) for each in left} == {("FAILURE", "SERVER_STOPPED")}
    assert await used_credits(database, caller) == 0
    assert await store.list_keys() == []
    assert await put_right(database, tmp_path, lease) == Recovery(0, 0)
    assert [await movements(database, each) for each in left] == [["reserve", "release"]] * 3


async def test_a_living_servers_records_are_left_alone(database: Database, tmp_path: Path) -> None:
    caller = await make_caller(database)
    other = await start_lease(database, tmp_path / "a", label="main")
    record = await leave_unfinished(database, caller, other.id, age=3600)
    judge = await start_lease(database, tmp_path / "b", label="main")
    await age_lease(database, judge, held=3600)
    assert await put_right(database, tmp_path, judge) == Recovery(0, 0)
    assert await status_of(database, record) == ("QUEUED", None)
    await age_lease(database, other, expired=1)
    assert await put_right(database, tmp_path, judge) == Recovery(1, 2)
    assert await used_credits(database, caller) == 0


async def test_several_servers_that_put_things_right_at_once_release_each_credit_once(
    migrated_url: str, tmp_path: Path
) -> None:
    database = Database(migrated_url)
    caller = await make_caller(database)
    left = [await leave_unfinished(database, caller, "main") for _ in range(10)]
    async with asyncio.timeout(120):
        databases = [Database(migrated_url) for _ in range(3)]
        leases = [await start_lease(each, tmp_path) for each in databases]
        found = await asyncio.gather(
            *(put_right(each, tmp_path, lease) for each, lease in zip(databases, leases, strict=True))
        )
        for each in databases:
            await each.close()
    assert sum(recovery.failed for recovery in found) == 10
    assert await used_credits(database, caller) == 0
    assert [await movements(database, each) for each in left] == [["reserve", "release"]] * 10
    await database.close()


async def test_an_old_record_of_this_server_that_is_not_under_way_fails_and_one_that_is_goes_on(
    database: Database, tmp_path: Path
) -> None:
    caller = await make_caller(database)
    lease = await start_lease(database, tmp_path)
    lost = await leave_unfinished(database, caller, lease.id, age=121)
    drawn = await leave_unfinished(database, caller, lease.id, age=3600)
    fresh = await leave_unfinished(database, caller, lease.id)
    found = await reconcile(database, store_in(tmp_path), lease, lambda record_id: record_id == drawn.id)
    assert found == Recovery(1, 2)
    states = [await status_of(database, each) for each in (lost, drawn, fresh)]
    assert states == [("FAILURE", "SERVER_STOPPED"), ("QUEUED", None), ("QUEUED", None)]
    assert await used_credits(database, caller) == 2 * COST


async def test_a_store_that_is_away_keeps_nobody_from_starting(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = await make_caller(database)
    record = await leave_unfinished(database, caller, "main")
    lease, store = await start_lease(database, tmp_path), store_in(tmp_path)

    async def refuse(_: object) -> None:
        raise AssetError("the bucket is away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "delete", refuse)
        assert await reconcile(database, store, lease, nothing_under_way) == Recovery(1, 0)
    assert await picture_states(database, record) == ["DELETING", "DELETING"]
    assert await reconcile(database, store, lease, nothing_under_way) == Recovery(0, 2)


async def test_a_dead_servers_webhooks_go_to_one_server(database: Database, tmp_path: Path) -> None:
    left = await Subscriptions(database, "main").add("record", "team", "https://hook.example/")
    leases = [await start_lease(database, tmp_path / name) for name in ("a", "b")]
    theirs = await Subscriptions(database, leases[1].id).add("another", "team", "https://hook.example/")
    found = [await put_right(database, tmp_path, lease) for lease in leases]
    assert [each.adopted for each in found] == [(left,), ()]
    async with database.read() as connection:
        rows = (await connection.execute(select(webhooks.c.id, webhooks.c.instance))).all()
    assert dict(map(tuple, rows)) == {left.id: leases[0].id, theirs.id: leases[1].id}


async def test_a_heartbeat_stops_what_was_ended_elsewhere_and_nothing_else(database: Database, tmp_path: Path) -> None:
    caller = await make_caller(database)
    lease, other = await start_lease(database, tmp_path / "a"), await start_lease(database, tmp_path / "b")
    admission = Admission()
    drawn = [await leave_unfinished(database, caller, lease.id) for _ in range(3)]
    not_yet_written = await leave_unfinished(database, caller, other.id)
    async with database.write() as connection:
        await connection.execute(images.delete().where(images.c.record_id == not_yet_written.id))
        await connection.execute(records.delete().where(records.c.id == not_yet_written.id))
    tasks = {}
    for record in (*drawn, not_yet_written):
        running = Running(record, detached=True)
        with admission.admit(running, lambda: QueueEstimate(0, 0)) as place:
            place.keep()
        tasks[record.id] = asyncio.ensure_future(running.draw(asyncio.ensure_future(asyncio.sleep(3600))))
        await asyncio.sleep(0)
    elsewhere = History(database, store_in(tmp_path), Admission())
    await elsewhere.cancel(caller, drawn[0].id)
    await elsewhere.delete(caller, drawn[1].id)
    await heartbeat(database, lease, admission)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [record_id for record_id, task in tasks.items() if task.done()] == [drawn[0].id, drawn[1].id]
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


async def test_a_record_that_is_deleted_elsewhere_costs_nothing_and_waits_for_its_server_to_clean_up(
    database: Database, tmp_path: Path
) -> None:
    caller = await make_caller(database)
    drawing, other = await start_lease(database, tmp_path / "a"), await start_lease(database, tmp_path / "b")
    record = await leave_unfinished(database, caller, drawing.id)
    store = store_in(tmp_path)
    await History(database, store, Admission()).delete(caller, record.id)
    assert await used_credits(database, caller) == 0
    with pytest.raises(NotFoundError):
        await History(database, store, Admission()).find(caller, record.id)
    # the server that draws has not heard of it yet, and stores a picture: its row is still there, whoever cleans up
    await store.put(record.images[0].key, b"late", "image/webp")
    assert await put_right(database, tmp_path, other) == Recovery(0, 0)
    assert await picture_states(database, record) == ["ALLOCATED", "ALLOCATED"]
    async with database.write() as connection:
        assert not await finish_record(connection, as_success(record))
    await remove_images(database, store, [image.key for image in record.images])
    assert await store.list_keys() == []
    assert await status_of(database, record) is None
    assert await movements(database, record) == ["reserve", "release"]


async def test_what_a_server_stored_of_a_record_ended_elsewhere_goes_if_the_server_dies_before_it_cleans_up(
    database: Database, tmp_path: Path
) -> None:
    caller = await make_caller(database)
    drawing, other = await start_lease(database, tmp_path / "a"), await start_lease(database, tmp_path / "b")
    deleted, cancelled = [await leave_unfinished(database, caller, drawing.id) for _ in range(2)]
    store = store_in(tmp_path)
    history = History(database, store, Admission())
    await history.delete(caller, deleted.id)
    assert (await history.cancel(caller, cancelled.id)).error_code == GenerationCancelledError.code
    for record in (deleted, cancelled):
        await store.put(record.images[1].key, b"late", "image/webp")
    await drawing.end()
    assert await put_right(database, tmp_path, other) == Recovery(0, 4)
    assert await store.list_keys() == []
    assert await status_of(database, deleted) is None
    assert await status_of(database, cancelled) == ("FAILURE", "CANCELLED")


async def test_cancelling_elsewhere_loses_against_an_end_that_came_first(database: Database, tmp_path: Path) -> None:
    caller = await make_caller(database)
    drawing = await start_lease(database, tmp_path)
    record = await leave_unfinished(database, caller, drawing.id)
    async with database.write() as connection:
        assert await finish_record(connection, as_success(record))
        reservation = await find_reservation(connection, record.id)
        assert reservation is not None
        await settle(connection, reservation, COST, 2)
    found = await History(database, store_in(tmp_path), Admission()).cancel(caller, record.id)
    assert found.status == "SUCCESS"
    assert await used_credits(database, caller) == COST


async def test_a_deletion_and_an_end_at_once_settle_or_release_but_never_both(
    database: Database, tmp_path: Path
) -> None:
    caller = await make_caller(database)
    drawing = await start_lease(database, tmp_path)
    history = History(database, store_in(tmp_path), Admission())

    async def finish(record_id: str) -> None:
        async with database.write() as connection:
            if await finish_record(connection, as_success(by_id[record_id])):
                reservation = await find_reservation(connection, record_id)
                assert reservation is not None
                await settle(connection, reservation, COST, 2)

    by_id = {}
    for _ in range(20):
        record = await leave_unfinished(database, caller, drawing.id)
        by_id[record.id] = record
    both = [work for record_id in by_id for work in (finish(record_id), history.delete(caller, record_id))]
    await asyncio.gather(*both)
    ends = [tuple(await movements(database, record)) for record in by_id.values()]
    assert set(ends) <= {("reserve", "settle"), ("reserve", "release")}
    assert await used_credits(database, caller) == COST * ends.count(("reserve", "settle"))
    async with database.write() as connection:
        await connection.execute(update(records).values(instance="gone"))
    await put_right(database, tmp_path, drawing)
    async with database.read() as connection:
        assert (await connection.execute(select(records.c.id))).all() == []
