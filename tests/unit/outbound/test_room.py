import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schnell.errors import DiskError, LoraDownloadError
from schnell.outbound.room import KEPT_FREE, PARTIAL_SECONDS, DownloadRoom, FetchBudget

BUDGET = FetchBudget(total=1000, per_team=600)


def fetch(room: DownloadRoom, path: Path, team: str, size: int) -> None:
    """A fetch that breaks off after `size` bytes."""
    room.open(path, team)
    try:
        room.grow(path, size)
        path.write_bytes(b"x" * size)
    finally:
        room.close(path)


def test_what_broke_off_longest_ago_goes_first_within_the_team(tmp_path: Path) -> None:
    room = DownloadRoom(tmp_path, BUDGET)
    for number in range(4):
        fetch(room, tmp_path / f"{number}.part", "a", 200)
    fetch(room, tmp_path / "other.part", "b", 300)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.part", "2.part", "3.part", "other.part"]
    assert room.used == 900


def test_a_file_that_is_being_fetched_is_never_removed_for_another(tmp_path: Path) -> None:
    room = DownloadRoom(tmp_path, BUDGET)
    room.open(tmp_path / "a.part", "a")
    room.grow(tmp_path / "a.part", 500)
    with pytest.raises(LoraDownloadError, match="600 bytes for a team"):
        fetch(room, tmp_path / "b.part", "a", 200)
    fetch(room, tmp_path / "c.part", "b", 400)
    assert room.used == 900


def test_a_disk_without_room_is_said_so_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=KEPT_FREE + 100))
    room = DownloadRoom(tmp_path, BUDGET)
    fetch(room, tmp_path / "a.part", "a", 50)
    with pytest.raises(DiskError):
        fetch(room, tmp_path / "b.part", "a", 51)
    assert not (tmp_path / "b.part").exists()


def test_what_a_server_before_has_left_counts_and_goes_after_an_hour(tmp_path: Path) -> None:
    for name, age in (("old.part", PARTIAL_SECONDS + 1), ("old.note", PARTIAL_SECONDS + 1), ("new.part", 1.0)):
        (tmp_path / name).write_bytes(b"x" * 100)
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    room = DownloadRoom(tmp_path, BUDGET)
    room.open(tmp_path / "mine.part", "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.part"]
    assert room.used == 100


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.integers(0, 700)), max_size=30))
def test_the_disk_never_holds_more_than_the_budget(
    tmp_path_factory: pytest.TempPathFactory, fetches: list[tuple[str, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("downloads")
    room = DownloadRoom(folder, BUDGET)
    for team, name, size in fetches:
        try:
            fetch(room, folder / f"{name}.part", team, size)
        except LoraDownloadError:
            assert size > BUDGET.per_team
        assert sum(path.stat().st_size for path in folder.iterdir()) <= BUDGET.total
