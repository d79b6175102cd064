import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from books import check_credits
from counts import repeats
from databases import migrated_url
from flaky_database import Fault, FlakyDatabase
from schnell.accounts.credits import Reservation, release, reserve
from schnell.accounts.identity import Caller
from schnell.accounts.teams import add_member, create_team
from schnell.assets.links import LinkSigner
from schnell.assets.local import LocalAssets
from schnell.assets.store import KeyMint
from schnell.clock import Backoff, now
from schnell.database.tables import images, metadata, new_id, records
from schnell.errors import AssetError, DatabaseUnavailableError, GenerationCancelledError, GenerationFailedError
from schnell.generations.closing import Closings, Ending, failed
from schnell.generations.records import Record, StoredImage, find_record, finish_record, hide_record, insert_record
from schnell.generations.request import describe_spec
from schnell.spec import GenerationSpec

__all__ = ["migrated_url"]
NO_WAIT = Backoff(0.0, 0.0)
COST = 400


@dataclass
class House:
    """A database that can be made to fail, a store of files, and a team."""

    database: FlakyDatabase
    store: LocalAssets
    closings: Closings
    caller: Caller
    keys: KeyMint

    async def accept(self, outputs: int = 2) -> tuple[Record, Reservation]:
        draft = self.draft(outputs)
        async with self.database.write() as connection:
            reservation = await reserve(connection, self.caller, draft.id, draft.cost)
            await insert_record(connection, draft)
        return draft, reservation

    def draft(self, outputs: int = 2) -> Record:
        caller, moment = self.caller, now()
        spec = GenerationSpec("a red apple", num_outputs=outputs)
        keys = [self.keys.make(moment, "webp") for _ in range(outputs)]
        return Record(
            id=new_id(),
            team_id=caller.team_id,
            user_id=caller.user_id,
            key_id=caller.key_id,
            instance="main",
            dialect="onemin",
            type="IMAGE_GENERATOR",
            model="flux",
            status="QUEUED",
            prompt_object={},
            settings=describe_spec(spec),
            cost=COST * outputs,
            created_at=moment,
            images=tuple(StoredImage(key, place, "image/webp") for place, key in enumerate(keys)),
        )

    async def succeed(self, draft: Record, pictures: int = 2) -> Ending:
        """The files are stored, and the record is to name them."""
        kept = draft.images[:pictures]
        for image in kept:
            await self.store.put(image.key, b"picture", "image/webp")
        return Ending(
            replace(draft, status="SUCCESS", images=kept, cost=COST * pictures, receipts=({},), finished_at=now())
        )

    async def status(self, record_id: str) -> str:
        async with self.database.read() as connection:
            return str((await connection.execute(select(records.c.status).where(records.c.id == record_id))).scalar())

    async def check(self) -> None:
        async with self.database.read() as connection:
            await check_credits(connection)
            named = set((await connection.execute(select(images.c.key).where(images.c.state == "STORED"))).scalars())
        assert named == set(await self.store.list_keys())


async def build_house(database: FlakyDatabase, folder: Path) -> House:
    async with database.write() as connection:
        team = await create_team(connection, f"team {new_id()}", credit_limit=1_000_000)
        member = await add_member(connection, team.id, "Ann")
    caller = Caller(team.id, member.user_id, "Ann", new_id(), "MEMBER", ("generate",))
    store = LocalAssets(folder / "assets", LinkSigner("secret"), "http://here")
    return House(database, store, Closings(database, store, NO_WAIT), caller, KeyMint("test"))


@pytest.fixture
async def house(migrated_url: str, tmp_path: Path) -> AsyncIterator[House]:
    database = FlakyDatabase(migrated_url)
    yield await build_house(database, tmp_path)
    await database.close()


FAULTS: list[list[Fault]] = [[], ["away"], ["before"], ["after"], ["away", "after"], ["before", "after"]]


@pytest.mark.parametrize("faults", FAULTS)
async def test_a_success_is_charged_once_whatever_becomes_of_its_commit(house: House, faults: list[Fault]) -> None:
    draft, reservation = await house.accept()
    ending = await house.succeed(draft, pictures=1)
    house.database.faults = list(faults)
    assert await house.closings.close(ending, reservation) == ending
    await house.closings.remove_unused(draft, ending.record)
    assert await house.status(draft.id) == "SUCCESS"
    assert house.closings.retries == len(faults)
    await house.check()


@pytest.mark.parametrize("faults", FAULTS)
async def test_a_failure_is_released_once_whatever_becomes_of_its_commit(house: House, faults: list[Fault]) -> None:
    draft, reservation = await house.accept()
    await house.store.put(draft.images[0].key, b"picture", "image/webp")
    ending = failed(draft, GenerationFailedError("out of memory"))
    house.database.faults = list(faults)
    assert await house.closings.close(ending, reservation) == ending
    await house.closings.remove_unused(draft, ending.record)
    await house.check()


@pytest.mark.parametrize("faults", [["bug"], ["after", "bug"], ["bug", "after"]])
async def test_an_end_that_cannot_be_written_as_it_is_becomes_a_plain_failure(
    house: House, faults: list[Fault]
) -> None:
    draft, reservation = await house.accept()
    ending = await house.succeed(draft)
    house.database.faults = list(faults)
    held = await house.closings.close(ending, reservation)
    if faults[0] == "after":  # it was written after all
        assert held == ending
    else:
        assert isinstance(held.error, GenerationFailedError)
    await house.closings.remove_unused(draft, held.record)
    assert await house.status(draft.id) == held.record.status
    await house.check()


async def test_where_somebody_else_has_ended_the_record_the_pictures_go_and_nothing_is_charged(house: House) -> None:
    draft, reservation = await house.accept()
    ending = await house.succeed(draft)
    other = failed(draft, GenerationCancelledError("cancelled on another server"))
    async with house.database.write() as connection:
        await finish_record(connection, other.record)
        await release(connection, reservation)
    held = await house.closings.close(ending, reservation)
    assert held.record.status == "FAILURE"
    assert isinstance(held.error, GenerationCancelledError)
    await house.closings.remove_unused(draft, held.record)
    assert await house.store.list_keys() == []
    await house.check()


async def test_credits_that_somebody_else_left_held_are_released(house: House) -> None:
    draft, reservation = await house.accept()
    ending = await house.succeed(draft)
    async with house.database.write() as connection:
        await hide_record(connection, draft.id)  # deleted while it was drawn, without a release
    held = await house.closings.close(ending, reservation)
    assert held.error is not None
    await house.closings.remove_unused(draft, held.record)
    await house.check()


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("faults", FAULTS)
async def test_an_acceptance_without_an_answer_is_undone_whether_it_was_committed_or_not(
    house: House, faults: list[Fault], committed: bool
) -> None:
    draft = (await house.accept())[0] if committed else house.draft()
    house.database.faults = list(faults)
    await house.closings.abandon(draft, DatabaseUnavailableError("not confirmed"))
    async with house.database.read() as connection:
        if committed:
            record = await find_record(connection, draft.team_id, draft.id)
            assert (record.status, record.error_code) == ("FAILURE", "DATABASE_UNAVAILABLE")
        else:
            assert (await connection.execute(select(records.c.id))).first() is None
        assert (await connection.execute(select(images.c.key))).first() is None
    await house.check()


async def test_pictures_that_a_record_names_are_never_cleaned_up(house: House) -> None:
    draft, reservation = await house.accept()
    ending = await house.succeed(draft)
    await house.closings.close(ending, reservation)
    await house.closings.remove_unused(draft, failed(draft, GenerationFailedError("a wrong guess")).record)
    assert len(await house.store.list_keys()) == 2
    await house.check()


async def test_pictures_that_may_still_be_named_are_not_cleaned_up(house: House) -> None:
    draft, reservation = await house.accept()
    ending = await house.succeed(draft)
    await house.closings.remove_unused(draft, failed(draft, GenerationFailedError("too early")).record)
    await house.closings.close(ending, reservation)
    await house.check()


async def test_pictures_that_cannot_be_removed_are_removed_later(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    draft, reservation = await house.accept()
    await house.succeed(draft)
    held = await house.closings.close(failed(draft, GenerationFailedError("out of memory")), reservation)
    with monkeypatch.context() as patch:

        async def refuse(_: object) -> None:
            raise AssetError("the bucket is away")

        patch.setattr(house.store, "delete", refuse)
        await house.closings.remove_unused(draft, held.record)
        await house.closings.remove_leftovers()
        assert len(await house.store.list_keys()) == 2
    await house.closings.remove_leftovers()
    assert await house.store.list_keys() == []
    await house.check()


async def test_a_closing_that_takes_long_is_overdue_until_it_is_written(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schnell.generations.closing._OVERDUE_SECONDS", 0.0)
    draft, reservation = await house.accept()
    ending = await house.succeed(draft)
    house.database.faults = ["away"] * 50
    assert house.closings.overdue().count == 0
    closing = asyncio.create_task(house.closings.close(ending, reservation))
    await asyncio.sleep(0)
    assert house.closings.overdue().count == 1
    await closing
    assert house.closings.overdue().count == 0


End = Literal["success", "failure", "abandon", "ended elsewhere", "deleted"]
fault_lists = st.lists(st.sampled_from(["away", "before", "after", "bug"]), max_size=4)
plans = st.lists(
    st.tuples(st.sampled_from(["success", "failure", "abandon", "ended elsewhere", "deleted"]), fault_lists), max_size=4
)


@settings(max_examples=repeats(300), deadline=None)
@given(plans)
def test_every_generation_ends_once_whatever_fails(plan: list[tuple[End, list[Fault]]]) -> None:
    with TemporaryDirectory() as folder:
        asyncio.run(_play(Path(folder), plan))


async def _play(folder: Path, plan: Sequence[tuple[End, list[Fault]]]) -> None:
    database = FlakyDatabase(f"sqlite:{folder / 'closing.db'}")
    async with database.write() as connection:
        await connection.run_sync(metadata.create_all)
    house = await build_house(database, folder)
    for end, faults in plan:
        await _end(house, end, faults)
        await house.closings.remove_leftovers()
        await house.check()
    assert house.closings.overdue().count == 0
    await database.close()


async def _end(house: House, end: End, faults: list[Fault]) -> None:
    draft, reservation = await house.accept()
    error = GenerationFailedError("out of memory")
    if end == "abandon":
        house.database.faults = list(faults)
        await house.closings.abandon(draft, error)
        return
    ending = failed(draft, error) if end == "failure" else await house.succeed(draft, pictures=1)
    if end in {"ended elsewhere", "deleted"}:
        other: Any = failed(draft, error)
        async with house.database.write() as connection:
            await finish_record(connection, other.record)
            await release(connection, reservation)
            if end == "deleted":
                await connection.execute(update(records).where(records.c.id == draft.id).values(status="DELETED"))
    house.database.faults = list(faults)
    held = await house.closings.close(ending, reservation)
    house.database.faults = []
    await house.closings.remove_unused(draft, held.record)
