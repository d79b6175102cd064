import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schnell.errors import TeamBusyError
from schnell.loras.turns import Turns


async def work(turns: Turns, team: str, log: list[str], go_on: asyncio.Event) -> None:
    async with turns.take(team):
        log.append(team)
        await go_on.wait()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_team_that_asks_for_much_waits_behind_its_own() -> None:
    turns, go_on = Turns("files", at_once=1, per_team=1), asyncio.Event()
    log: list[str] = []
    tasks = [asyncio.create_task(work(turns, team, log, go_on)) for team in ("a", "a", "a", "b", "", "a")]
    await settle()
    assert log == ["a"]
    go_on.set()
    await asyncio.gather(*tasks)
    assert log == ["a", "a", "b", "", "a", "a"]


async def test_one_team_leaves_places_to_the_others() -> None:
    turns, go_on = Turns("files", at_once=3, per_team=2), asyncio.Event()
    log: list[str] = []
    tasks = [asyncio.create_task(work(turns, team, log, go_on)) for team in ("a", "a", "a", "b")]
    await settle()
    assert log == ["a", "a", "b"]
    go_on.set()
    await asyncio.gather(*tasks)


async def test_who_would_wait_behind_too_many_is_refused() -> None:
    turns, go_on = Turns("files", at_once=1, per_team=1, waiting=2), asyncio.Event()
    log: list[str] = []
    tasks = [asyncio.create_task(work(turns, "a", log, go_on)) for _ in range(3)]
    await settle()
    with pytest.raises(TeamBusyError, match="2 files waiting"):
        await work(turns, "a", log, go_on)
    go_on.set()
    await asyncio.gather(*tasks)
    assert log == ["a"] * 3


@given(st.lists(st.tuples(st.sampled_from(["a", "b", ""]), st.booleans()), min_size=1, max_size=12))
def test_every_turn_comes_back_whoever_gives_up(asked: Sequence[tuple[str, bool]]) -> None:
    async def run() -> None:
        turns, go_on = Turns("files", at_once=2, per_team=1), asyncio.Event()
        log: list[str] = []
        tasks = [asyncio.create_task(work(turns, team, log, go_on)) for team, _ in asked]
        await settle()
        for task, (_, gives_up) in zip(tasks, asked, strict=True):
            if gives_up:
                task.cancel()
        await settle()
        go_on.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        # nothing is held any more: as many as may run at once do so at once
        async with asyncio.timeout(5), turns.take("x"), turns.take("y"):
            pass

    asyncio.run(run())
